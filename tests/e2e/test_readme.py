"""The README's tour is run as it stands: every `sh` block of it, in order, in one shell."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
MARK = "---8<---"


@pytest.fixture(scope="module")
def tour(service, tmp_path_factory):
    """What each block printed, by the block's number, and the directory in which they ran."""
    directory = tmp_path_factory.mktemp("tour")
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    script = f"\necho; echo '{MARK}'\n".join(blocks)
    script = script.replace("http://127.0.0.1:8000", service.url)
    # A reader looks at the first job's id; here a key of its own finds the job again.
    assert "job=1\n" in script
    again = f"curl -s {service.url}/jobs -H 'Content-Type: application/json' -H 'Idempotency-Key: clothes-1' -d @clothes.json"
    script = script.replace("job=1\n", f"job=$({again} | sed 's/^{{\"id\":\\([0-9]*\\).*/\\1/')\n")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=directory, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [part.strip() for part in done.stdout.split(MARK)], directory


def test_the_plan_comes_before_the_job(tour):
    printed, _ = tour
    plan = json.loads(printed[0])
    assert plan["dataset"]["classes"][0] == "T-shirt/top"
    assert plan["transfer"]["source"] is None
    job = json.loads(printed[1])
    assert (job["name"], job["progress"]["step"]) == ("clothes", 0)


def test_the_text_shows_each_iteration_and_the_end(tour):
    printed, _ = tour
    lines = printed[2].splitlines()
    assert "Epoch 1, iteration : 1, loss = " in "\n".join(lines)
    assert lines[-1] == "End : succeeded"


def test_pages_ndjson_and_sse_agree(tour):
    printed, _ = tour
    page, length = json.JSONDecoder().raw_decode(printed[3])
    streams = printed[3][length:]
    assert [event["seq"] for event in page["data"]] == [1, 2, 3]
    ndjson = [json.loads(line) for line in streams.splitlines() if line.startswith('{"seq"')]
    sse = [json.loads(line.removeprefix("data: ")) for line in streams.splitlines() if line.startswith("data: ")]
    assert ndjson == sse
    assert [event["seq"] for event in ndjson] == list(range(4, 4 + len(ndjson)))


def test_a_job_its_losses_checkpoints_validation_and_samples_are_looked_at(tour):
    printed, _ = tour
    job, losses, checkpoints, evaluation, samples = (json.loads(line) for line in printed[4].replace("}{", "}\n{").splitlines())
    assert (job["state"], len(losses["buckets"]), len(checkpoints["data"])) == ("succeeded", 5, 1)
    assert (len(evaluation["classes"]), len(evaluation["hardest"])) == (10, 16)
    assert samples["step"] == 3
    assert {sample["label"] for sample in samples["samples"]} <= {row["name"] for row in evaluation["classes"]}


def test_the_second_job_is_grafted_and_its_groups_are_as_asked(tour):
    printed, _ = tour
    assert printed[5].splitlines()[-1] == "End : succeeded"
    transfer, groups = (json.loads(line) for line in printed[6].replace("}{", "}\n{").splitlines())
    assert transfer["totals"]["loaded"]["tensors"] == len(transfer["targets"])
    assert [(row["name"], row["frozen"]) for row in groups["groups"]] == [("head", False), ("stem", True), ("default", False)]


def test_the_weights_and_their_description_are_downloaded(tour):
    printed, directory = tour
    assert len(json.loads(printed[7])["classes"]) == 10
    assert (directory / "weights.safetensors").stat().st_size > 40_000_000


def test_the_mistakes_are_answered_with_their_places(tour):
    printed, _ = tour
    problem = json.loads(printed[8])
    assert problem["status"] == 422
    assert any(fault["pointer"] == "/dataset/source" and "'FashionMNIST'" in fault["message"] for fault in problem["errors"])


def test_a_fork_is_adjusted_paused_changed_resumed_and_cancelled(tour):
    printed, _ = tour
    fork = json.loads(printed[9])
    assert fork["forked_from"]["job"] == fork["id"] - 1
    assert fork["spec"]["pretrained"]["source"].startswith(f"job:{fork['id'] - 1}@")
    asked = json.loads(printed[10])
    assert (asked["group"], asked["changes"]) == ("head", {"lr": 5e-4})
    paused, changed, resumed, cancelled = (json.loads(line) for line in printed[11].replace("}{", "}\n{").splitlines())
    assert {job["id"] for job in (paused, changed, resumed, cancelled)} == {fork["id"]}
    assert "paused" in paused["state"] or paused["requested"] == "pause"
    assert (changed["priority"], changed["labels"]) == (10, {"team": "web"})
    assert resumed["requested"] is None
    assert cancelled["state"] == "cancelled" or cancelled["requested"] == "cancel"
