"""The attempts of a job, in this process: killed after so many events, and gone on from what its log tells."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from core.adjustments import RULES, Adjustment, Adjustments, Told
from core.events import CheckpointData, Data, Iteration, Row, chunk, firings, fold, retained
from core.places import Places
from core.spec import JobSpec
from core.training.job import fit


class Log:
    """What a job said, as the service stores it; and what it tells the next attempt."""

    def __init__(self, spec: JobSpec, directory: Path) -> None:
        self.spec, self.directory = spec, directory
        self.rows: list[Row] = []
        self.attempts = 0

    def run(self, places: Places, events: int = 10**9, *, asked: Iterable[Adjustment] = (), **more: Any) -> Log:
        """An attempt, killed once it has said so many events; what it said of a firing not yet told whole is lost with it.

        Of `asked` it is told what the log does not answer yet.
        """
        if self.attempts:
            more = {
                "resume": self.kept(),
                "adjustments": Adjustments(Told(self.of(*Told.kinds)).history()),
                "fired": firings(self.of("rule", "rewound")),
                **more,
            }
        answered = {row.data["id"] for row in self.of("adjusted")}
        for one in asked:
            if one.id not in answered:
                more.setdefault("adjustments", Adjustments()).ask(one)
        self.attempts += 1
        begin = len(self.rows)
        with closing(fit(self.spec, places, self.directory / str(self.attempts), **more)) as job:
            for item in job:
                self._add(item)
                if len(self.rows) - begin >= events:
                    break
        while isinstance(self.rows[-1].data, dict) and self.rows[-1].data.get("by") == RULES:
            self.rows.pop()
        return self

    def _add(self, item: Iteration | tuple[int, Data]) -> None:
        step, data = (item.step + 1, chunk([item])) if isinstance(item, Iteration) else item
        values = data.model_dump(mode="json")
        if isinstance(data, CheckpointData):
            values["path"] = str(self.directory / str(self.attempts) / data.path)
        self.rows.append(Row(len(self.rows) + 1, step, data.kind, values))

    def of(self, *kinds: str) -> list[Row]:
        return [row for row in self.rows if row.kind in kinds]

    def valid(self, kind: str) -> list[dict[str, Any]]:
        return [row.data for row in fold(self.rows) if row.kind == kind]

    def kept(self) -> list[Path]:
        written, rule = self.valid("checkpoint"), self.spec.checkpoint
        steps = retained(written, rule.keep_last, rule.keep_best, rule.metric)
        return [Path(data["path"]) for data in reversed(written) if data["step"] in steps]

    def story(self) -> dict[str, Any]:
        """All that must not depend on when it was killed: losses and lr, cuts, figures, the last checkpoint."""
        place = Path(self.valid("checkpoint")[-1]["path"])
        state = json.loads((place / "state.json").read_text())
        progress = {key: value for key, value in state["progress"].items() if key != "seconds"}
        return {
            "losses": {data["first"]: (data["losses"], data["lr"]) for data in self.valid("iterations")},
            "adjusted": self.valid("adjusted"),
            "used": [one.nth for one in firings(self.of("rule", "rewound"))],
            "figures": {data["step"]: (data["figures"], data["best"]) for data in self.valid("checkpoint")},
            "end": (progress, state["values"], *(path.read_bytes() for path in sorted(place.glob("*.safetensors")))),
        }
