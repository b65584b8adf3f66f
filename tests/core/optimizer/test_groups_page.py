"""docs/groups.md shows what a plan of its example says."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from client.reports import groups_view
from core.places import Places
from core.plan import plan
from core.spec import JobSpec

PAGE = (Path(__file__).parents[3] / "docs" / "groups.md").read_text(encoding="utf-8")


def test_the_pages_example_is_planned_as_it_says(places: Places) -> None:
    blocks = [(language, " ".join(text.split())) for language, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)]
    groups = plan(JobSpec.model_validate_json(dict(blocks)["json"]), places).groups.model_dump(mode="json")
    shown = [text for _, text in blocks]
    parameter = next(row for row in groups["parameters"] if row["names"] == ["fc.bias"])
    assert json.dumps(parameter) in shown
    row = next(row for row in groups["groups"] if row["name"] == "low/depth-0/no_decay")
    few = {key: row["hyperparameters"][key] for key in ("lr", "weight_decay")}
    assert json.dumps({**row, "hyperparameters": few}).replace("0.0}", "0.0, …}") in shown
    console = Console(width=150, file=io.StringIO())
    console.print(groups_view(groups))
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    values = [line.rstrip() for line in printed.splitlines() if " parts " in line]
    assert values == [line for line in PAGE.splitlines() if line.startswith(("head, ", "low, ", "default, "))]
