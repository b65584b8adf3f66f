"""docs/own-model.md is run as it stands: a person's own module from examples/, submitted by curl, on a resnet50's weights."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from client.transfer import transfer_view

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own-model.md"
MARK = "---8<---"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def printed(service, tmp_path_factory):
    """What each `sh` block of the page printed, and the directory in which they ran."""
    directory = tmp_path_factory.mktemp("own-model")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = f"\necho; echo '{MARK}'\n".join(blocks).replace("http://127.0.0.1:8000", service.url)
    (directory / "examples" / "own_model").mkdir(parents=True)
    job = (ROOT / "examples" / "own_model" / "job.json").read_text(encoding="utf-8")
    assert "folder:pets" in job
    (directory / "examples" / "own_model" / "job.json").write_text(job.replace("folder:pets", "folder:few"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=directory, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [part.strip() for part in done.stdout.split(MARK)], directory


def test_the_plan_and_the_page_say_the_same_of_the_transfer(printed):
    plan = json.loads(printed[0][0])
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(transfer_view(plan["transfer"], planned=True))
    quoted = re.search(r"<!-- quoted by [^>]*-->\n```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    shown = [line.rstrip() for line in captured.get().splitlines()]
    assert shown.pop(1).startswith("torch, SHA-256 ")  # the page leaves it out: these weights are drawn for the test
    assert shown == quoted.splitlines()


def test_the_job_trains_on_the_layers_that_it_shares_and_they_stay_what_they_were(printed, resnet50_weights):
    (_, log, report), directory = printed
    assert log.splitlines()[-1] == "End : succeeded"
    transfer = json.loads(report)
    loaded = [one["key"] for one in transfer["targets"] if one["status"] == "loaded"]
    shared = [key for key in resnet50_weights if key.startswith(("conv1.", "bn1.", "layer1.", "layer2.", "layer3."))]
    assert loaded == shared
    assert {one["key"] for one in transfer["targets"] if one["status"] == "missing"} == {
        f"{layer}.{word}" for layer in ("fine", "coarse", "classify") for word in ("weight", "bias")
    }
    kept = load_file(directory / "weights.safetensors")
    assert all(torch.equal(kept[key], resnet50_weights[key]) for key in shared)  # frozen, and their norms in eval
