"""The `graft` command against the real service."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from client.cli import app


@pytest.fixture
def graft(service):
    def graft(*arguments, spec=None):
        environment = {"GRAFT_URL": service.url, "COLUMNS": "120"}
        return CliRunner().invoke(app, list(arguments), env=environment, input=json.dumps(spec) if spec else None)

    return graft


def test_a_job_from_its_plan_to_its_checkpoints(graft, spec):
    sent = spec(training={"epochs": 2}, labels={"suite": "command"})
    planned = graft("plan", "-", spec=sent)
    assert planned.exit_code == 0, planned.output
    assert "1,617 images to train on, 180 to validate, 10 classes" in planned.stdout
    assert "From scratch" in planned.stdout

    followed = graft("submit", "--follow", "-", spec=sent)
    assert followed.exit_code == 0, followed.output
    assert [line.split()[:2] for line in followed.stdout.splitlines() if line.startswith("  epoch ")] == [
        ["epoch", "1"],
        ["epoch", "2"],
    ]
    assert followed.stdout.rstrip().endswith("weights.safetensors")

    listed = graft("jobs", "--label", "suite:command", "--state", "succeeded")
    assert listed.exit_code == 0, listed.output
    row = listed.stdout.splitlines()[1].split()
    assert row[1:5] == ["succeeded", "52", "of", "52"]

    shown = graft("show", row[0])
    assert shown.exit_code == 0, shown.output
    for text in ("succeeded", "52 of 52", "Adam on cpu, fp32", "step 52", "top-1 0."):
        assert text in shown.stdout

    logged = graft("logs", "-f", row[0])
    assert (logged.exit_code, logged.stdout.splitlines()[-1]) == (0, "End : succeeded")
    events = [json.loads(line) for line in graft("logs", "--json", row[0]).stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, events[-1]["seq"] + 1))
    assert graft("cancel", row[0]).exit_code == 3


def test_a_folder_is_uploaded_and_a_job_trains_on_it(graft, spec, service):
    sent = graft("upload", str(service.data_dir / "inputs" / "few"), "--json")
    assert sent.exit_code == 0, sent.output
    dataset = json.loads(sent.stdout)
    assert [(one["name"], one["train"]) for one in dataset["classes"]] == [("0", 20), ("1", 20), ("2", 20)]
    followed = graft("submit", "-f", "-", spec=spec(dataset={"source": dataset["source"], "image_size": 16}))
    assert followed.exit_code == 0, followed.output
    assert "few" in graft("datasets").stdout
    deleted = graft("dataset", str(dataset["id"]), "--delete")
    assert (deleted.exit_code, graft("dataset", str(dataset["id"])).exit_code) == (0, 3)


def test_a_failed_job_is_status_1_and_shows_its_failure(graft, spec):
    sent = spec("people:Breaking", {"how": "raise"}, resources={"max_attempts": 1})
    followed = graft("submit", "-f", "-", spec=sent)
    assert followed.exit_code == 1
    assert "failed (crashed): RuntimeError: the flux capacitor is empty" in followed.stdout
    job_id = followed.stdout.split()[1]
    assert "the last line before the end" in graft("show", job_id).stdout


def test_a_refused_spec_is_status_2_and_names_each_place(graft, spec):
    refused = graft("submit", "-", spec={**spec(), "modell": {}, "loss": {"name": "CrosEntropyLoss"}})
    assert refused.exit_code == 2
    assert "/modell" in refused.stderr
    assert "Did you mean 'model'?" in refused.stderr
