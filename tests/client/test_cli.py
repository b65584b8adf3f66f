from __future__ import annotations

import hashlib
import json
import threading
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from client.cli import app


@pytest.fixture
def graft(service, tmp_path):
    """Run the command against the fake service: `graft("jobs", "--json")`."""
    spec = tmp_path / "spec.yaml"
    spec.write_text("dataset: {source: sklearn:digits}\nmodel: {name: torchvision:resnet18}\n")

    def graft(*arguments):
        words = [str(spec) if word == "SPEC" else word for word in arguments]
        return CliRunner().invoke(app, words, env={"GRAFT_URL": service.url, "COLUMNS": "100"})

    return graft


def answer_log(service, log):
    lines = [json.dumps(event).encode() + b"\n" for event in log]
    service.answers["/jobs/7/events"] = lambda query, _: (200, "application/x-ndjson", lines[int(query["after"]) :], True)


def test_submit_sends_the_spec_and_says_where_the_job_stands_and_what_was_warned_of(service, graft, job):
    service.answer("/jobs", job, 201)
    result = graft("submit", "SPEC")
    assert result.exit_code == 0
    assert service.asked == [
        ("POST", "/jobs", {}, {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}})
    ]
    assert "Job 7 is queued, 2 before it." in result.stdout
    assert "no worker serves the queue" in result.stdout


@pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 5)])
def test_a_followed_job_shows_its_epochs_and_its_end_is_the_exit_status(service, graft, job, log, state, status):
    failure = {"type": "crashed", "message": "it broke", "hint": "mend it", "lines": []} if state == "failed" else None
    log[-1]["data"] = {**log[-1]["data"], "state": state, "failure": failure}
    service.answer("/jobs", job, 201)
    answer_log(service, log)
    service.answer("/jobs/7/checkpoints", {"data": []})
    result = graft("submit", "--follow", "SPEC")
    assert result.exit_code == status, result.output
    assert "epoch 2  mean loss 0.7000  validation loss 0.5000  top-1 0.9000  1.5 s" in result.stdout
    assert state in result.stdout
    assert ("crashed): it broke\nmend it" in result.stdout) == (state == "failed")


def test_a_followed_job_with_json_is_the_log_as_ndjson_and_nothing_else(service, graft, job, log):
    service.answer("/jobs", job, 201)
    answer_log(service, log)
    result = graft("submit", "-f", "SPEC", "--json")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == log


def test_a_refused_spec_is_a_list_of_places_on_standard_error_and_status_2(service, graft):
    faults = [{"pointer": "/optimizer/lr", "message": "too [high]"}, {"pointer": "", "message": "no model"}]
    problem = {"title": "Unprocessable Content", "status": 422, "detail": "…", "errors": faults}
    service.answer("/plans", problem, 422)
    result = graft("plan", "SPEC")
    assert (result.exit_code, result.stdout) == (2, "")
    assert [" ".join(line.split()) for line in result.stderr.splitlines()] == [
        "Refused: 2 places to mend",
        "/optimizer/lr too [high]",
        "(the whole) no model",
    ]
    result = graft("plan", "SPEC", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (2, problem)


@pytest.mark.parametrize(("answered", "status"), [(400, 2), (404, 3), (409, 3), (500, 4), (503, 4)])
def test_the_exit_status_tells_whose_fault_a_refusal_is(service, graft, answered, status):
    service.answer("/jobs/7/cancel", {"title": "T", "status": answered, "detail": "because"}, answered)
    result = graft("cancel", "7")
    assert result.exit_code == status
    assert "because" in result.stderr


def test_no_service_is_status_4_and_says_how_to_start_one(graft):
    result = graft("jobs", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 4
    assert "graft serve" in result.stderr


def test_wrong_usage_is_status_2(graft):
    assert graft("submit", "nowhere.yaml").exit_code == 2
    assert graft("show", "seven").exit_code == 2
    assert graft("show", "0").exit_code == 2


def test_jobs_are_a_table_or_json(service, graft, job):
    done = {**job, "id": 6, "name": "[red]x", "state": "succeeded", "best": {"step": 9, "epoch": 1, "top1": 0.975}}
    service.answer("/jobs", {"data": [job, done], "has_more": False, "next": None})
    rows = graft("jobs", "--label", "team:web").stdout.splitlines()
    assert service.asked[0][2] == {"label": "team:web", "limit": "20"}
    assert rows[1].split()[:6] == ["7", "digits", "queued", "0", "of", "10"]
    assert {"[red]x", "succeeded", "0.9750"} <= set(rows[2].split())
    assert [row["id"] for row in json.loads(graft("jobs", "--json").stdout)] == [7, 6]


def test_logs_are_printed_as_they_are(service, graft, job):
    service.answers["/jobs/7/logs"] = lambda *_: (200, "text/plain", [b"[bold]not markup[/]\n" + b"x" * 300 + b"\n"], True)
    assert graft("logs", "7").stdout == "[bold]not markup[/]\n" + "x" * 300 + "\n"


def test_ctrl_c_while_following_leaves_the_job_running_and_says_how_to_go_on(service, graft, job, log, monkeypatch):
    service.answer("/jobs", job, 201)
    interrupted = threading.Event()

    def events(*_, **__):
        yield log[0]
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr("client.http.Client.events", events)
    result = graft("submit", "-f", "SPEC")
    assert interrupted.is_set()
    assert result.exit_code == 130
    assert "graft logs -f 7" in result.stderr
    assert "graft cancel 7" in result.stderr
    assert [path for _, path, _, _ in service.asked] == ["/jobs"]


def test_it_says_which_version_it_is(graft):
    result = graft("--version")
    assert (result.exit_code, result.stdout) == (0, f"graft {version('graft')}\n")


def test_workers_are_a_table_or_json(service, graft):
    answer = {"data": [], "queues": {"default": {"queued": 1}}}
    service.answer("/workers", answer)
    assert "Queue default: 1 queued; no worker serves it" in graft("workers").stdout
    assert json.loads(graft("workers", "--json").stdout) == answer


def test_the_help_lists_the_exit_statuses(graft):
    text = graft("--help").stdout
    assert "130: interrupted by Ctrl-C" in text


@pytest.mark.parametrize(
    ("command", "state", "requested", "said"),
    [
        ("pause", "paused", None, "Job 7 is paused."),
        ("pause", "running", "pause", "Job 7 is running and will pause in a moment."),
        ("resume", "queued", None, "Job 7 is queued."),
        ("cancel", "running", "cancel", "Job 7 is running and will stop in a moment."),
    ],
)
def test_a_job_is_steered_by_a_word(service, graft, job, command, state, requested, said):
    service.answer(f"/jobs/7/{command}", {**job, "state": state, "requested": requested})
    result = graft(command, "7")
    assert (result.exit_code, result.stdout.strip()) == (0, said)
    assert service.asked == [("POST", f"/jobs/7/{command}", {}, None)]


def test_several_jobs_are_cancelled_and_one_that_is_refused_keeps_none_of_the_others_back(service, graft, job):
    for number in (15, 17):
        service.answer(f"/jobs/{number}/cancel", {**job, "id": number, "state": "cancelled"})
    service.answer("/jobs/16/cancel", {"title": "Conflict", "status": 409, "detail": "job 16 is succeeded"}, 409)
    result = graft("cancel", "15", "16", "17")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == ["Job 15 is cancelled.", "Job 17 is cancelled."]
    assert "job 16 is succeeded" in result.stderr
    told = graft("cancel", "15", "17", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in told] == [15, 17]


@pytest.mark.parametrize("command", ["rm", "delete"])
def test_jobs_are_deleted_and_one_that_is_needed_says_why_it_stays(service, graft, command):
    for number in (3, 5):
        service.answers[f"/jobs/{number}"] = lambda *_: (204, "application/json", [], True)
    service.answer("/jobs/4", {"title": "Conflict", "status": 409, "detail": "job 9 needs its checkpoint"}, 409)
    result = graft(command, "3", "4", "5")
    assert (result.exit_code, result.stdout.splitlines()) == (3, ["Job 3 is deleted.", "Job 5 is deleted."])
    assert "job 9 needs its checkpoint" in result.stderr
    assert [(method, path) for method, path, _, _ in service.asked] == [("DELETE", f"/jobs/{number}") for number in (3, 4, 5)]


def test_an_upload_of_what_is_not_there_is_wrong_usage(graft):
    result = graft("upload", "nope")
    assert result.exit_code == 2
    assert "nope cannot be read: No such file or directory" in result.stderr


def test_the_address_may_stand_before_the_command_and_the_one_behind_it_goes_first(service, graft):
    service.answer("/jobs", {"data": [], "has_more": False, "next": None})
    nobody = "http://127.0.0.1:1"
    assert graft("jobs").exit_code == 0, "that of the environment"
    assert graft("--url", nobody, "jobs").exit_code == 4
    assert graft("--url", nobody, "jobs", "--url", service.url).exit_code == 0


ASKED = {"id": 1, "group": "head/no_decay", "changes": {"lr": 5e-4, "momentum": None}, "at_step": None, "by": "api"}


@pytest.mark.parametrize(
    ("options", "at", "said"),
    [
        ((), None, "From the next step on: group head/no_decay, lr 0.0005 (by api)"),
        (("--at", "120"), 120, "From step 120 on: group head/no_decay, lr 0.0005 (by api)"),
    ],
)
def test_the_lr_of_a_group_is_changed_by_a_word(service, graft, options, at, said):
    service.answer("/jobs/7/groups/head/no_decay", {**ASKED, "at_step": at}, 202)
    result = graft("lr", "7", "head/no_decay", "5e-4", *options)
    assert (result.exit_code, result.stdout.strip()) == (0, said)
    body = {"lr": 5e-4} if at is None else {"lr": 5e-4, "at_step": at}
    assert service.asked == [("PATCH", "/jobs/7/groups/head/no_decay", {}, body)]


@pytest.mark.parametrize(("command", "freeze"), [("freeze", True), ("thaw", False)])
def test_a_group_is_frozen_and_thawed_by_a_word(service, graft, command, freeze):
    service.answer("/jobs/7/groups/stem", {**ASKED, "group": "stem", "changes": {"freeze": freeze}, "at_step": 9}, 202)
    result = graft(command, "7", "stem", "--at", "9")
    said = f"From step 9 on: group stem, freeze {'true' if freeze else 'false'} (by api)"
    assert (result.exit_code, result.stdout.strip()) == (0, said)
    assert service.asked[0][3] == {"freeze": freeze, "at_step": 9}


def test_the_groups_are_shown_as_they_are_now_and_what_is_to_come(service, graft):
    row = {"name": "head", "of": "head", "hyperparameters": {"lr": 0.1}, "frozen": False, "until_epoch": None, "tensors": 2,
           "elements": 40, "parameters": [], "present": {"lr": 0.25}}  # fmt: skip
    table = {"optimizer": "Adam", "groups": [row], "executed_groups": 1, "fused": True, "parameters": [], "pending": [ASKED]}
    service.answer("/jobs/7/groups", table)
    shown = graft("groups", "7")
    assert shown.exit_code == 0, shown.output
    assert "0.25" in shown.stdout
    assert "From the next step on: group head/no_decay, lr 0.0005 (by api)" in shown.stdout


def test_a_followed_job_tells_of_a_change_in_its_groups(service, graft, job, log):
    changes = {"lr": {"from": 0.001, "to": 0.0005}, "freeze": {"from": {"a": True, "b": False}, "to": False}}
    data = {"id": 1, "group": "head", "step": 3, "changes": changes, "by": "api", "refused": None}
    log.insert(5, {**log[4], "kind": "adjusted", "data": data})
    rule = {"rule": "spike", "action": "cut_lr", "step": 2, "value": 9.0, "limit": 4.0, "message": "the loss was 9 at step 2"}
    log.insert(6, {**log[4], "kind": "rule", "data": rule})
    service.answer("/jobs", job, 201)
    answer_log(service, log)
    service.answer("/jobs/7/checkpoints", {"data": []})
    said = graft("submit", "-f", "SPEC").stdout
    assert "step 3: group head, lr 0.001 -> 0.0005, freeze true | false -> false (by api)" in said
    assert "spike: the loss was 9 at step 2" in said


def test_a_fork_from_the_start_takes_the_changes_of_the_groups_with_it(service, graft, job):
    service.answer("/jobs/3/fork", job, 201)
    assert graft("fork", "3", "--adjustments").exit_code == 0
    assert service.asked == [("POST", "/jobs/3/fork", {"adjustments": "true"}, {})]


def test_a_fork_sends_its_patch_and_says_what_became_of_it(service, graft, job, tmp_path):
    service.answer("/jobs/3/fork", {**job, "forked_from": {"job": 3, "step": 20}}, 201)
    patch = tmp_path / "patch.yaml"
    patch.write_text("optimizer: {lr: 1e-4}\npretrained: null\n")
    result = graft("fork", "3", str(patch), "--checkpoint", "last")
    assert (result.exit_code, "Job 7 is queued, 2 before it." in result.stdout) == (0, True)
    assert service.asked == [("POST", "/jobs/3/fork", {"checkpoint": "last"}, {"optimizer": {"lr": 1e-4}, "pretrained": None})]


def test_a_fork_without_a_patch_is_the_same_once_more_and_can_be_followed(service, graft, job, log):
    service.answer("/jobs/3/fork", job, 201)
    answer_log(service, log)
    result = graft("fork", "3", "--follow", "--json")
    assert result.exit_code == 0
    assert service.asked[0] == ("POST", "/jobs/3/fork", {}, {})
    assert [json.loads(line) for line in result.stdout.splitlines()] == log


@pytest.mark.parametrize(("running", "said"), [([], "in a moment."), ([3, 4], "after job 3, 4.")])
def test_a_worker_is_drained_by_its_name(service, graft, running, said):
    service.answer("/workers/host%2Fa.1/drain", {"name": "host/a.1", "running": running})
    result = graft("drain", "host/a.1")
    assert (result.exit_code, result.stdout.strip()) == (0, f"Worker host/a.1 takes no new job, and leaves {said}")


def test_a_fork_shows_where_it_comes_from(service, graft, job):
    service.answer("/jobs/7", {**job, "forked_from": {"job": 3, "step": 20}})
    for part in ("transfer", "groups"):
        service.answer(f"/jobs/7/{part}", {"title": "T", "status": 404, "detail": "not yet"}, 404)
    service.answer("/jobs/7/checkpoints", {"data": []})
    assert "job 3, on its weights at step 20" in graft("show", "7").stdout


def test_show_as_json_has_every_row_of_the_reports_and_null_before_there_is_one(service, graft, job):
    service.answer("/jobs/7", job)
    service.answer("/jobs/7/transfer", {"source": None, "targets": [{"key": "fc.weight"}]})
    service.answer("/jobs/7/groups", {"title": "T", "status": 404, "detail": "not yet"}, 404)
    shown = json.loads(graft("show", "7", "--json").stdout)
    assert shown == {**job, "transfer": {"source": None, "targets": [{"key": "fc.weight"}]}, "groups": None}


def test_a_download_takes_the_weights_and_what_they_are_of_the_best_checkpoint(service, graft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {step: b"weights of %d" % step for step in (10, 20)}
    rows = [{"step": step, "best": step == 10, "sha256": hashlib.sha256(weights[step]).hexdigest()} for step in (10, 20)]
    service.answer("/jobs/7/checkpoints", {"data": rows})
    for step, content in weights.items():
        here = f"/jobs/7/checkpoints/{step}"
        service.answers[f"{here}/weights.safetensors"] = lambda *_, content=content: (200, "application/x", [content], True)
        service.answer(f"{here}/model.json", {"step": step})
    result = graft("download", "7")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Step 10: job-7-step-10/weights.safetensors (13 bytes, SHA-256")
    assert (tmp_path / "job-7-step-10" / "weights.safetensors").read_bytes() == weights[10]
    assert json.loads((tmp_path / "job-7-step-10" / "model.json").read_text()) == {"step": 10}
    told = json.loads(graft("download", "7", "--checkpoint", "last", "-o", "here", "--json").stdout)
    assert (told["step"], told["weights"]) == (20, "here/weights.safetensors")
    assert graft("download", "7", "--checkpoint", "20", "-o", "/proc/nowhere").exit_code == 2


def test_a_checkpoint_that_is_not_there_is_refused_in_the_words_of_the_service(service, graft, tmp_path):
    service.answer("/jobs/7/checkpoints", {"data": []})
    problem = {"title": "Not Found", "status": 404, "detail": "job 7 is queued and has no checkpoint"}
    service.answer("/jobs/7/checkpoints/best/model.json", problem, 404)
    result = graft("download", "7", "-o", str(tmp_path / "new"))
    assert (result.exit_code, list((tmp_path / "new").iterdir())) == (3, [])
    assert "job 7 is queued and has no checkpoint" in result.stderr


CATALOG = {
    "datasets": {"torchvision": ["MNIST"], "folder": []},
    "models": ["torchvision:resnet18", "torchvision:resnet50", "timm:vit_tiny"],
    "pretrained": {"resnet18": ["IMAGENET1K_V1"], "resnet50": ["IMAGENET1K_V1", "IMAGENET1K_V2"]},
    "augmentations": {},
    "losses": {"CrossEntropyLoss": {"keywords": {"label_smoothing": 0.0}, "refused": None}},
    "optimizers": {"LBFGS": {"keywords": {}, "refused": "evaluates the loss several times"}},
    "schedules": {},
}
EMPTY = {name: {} for name in CATALOG} | {"models": []}


def test_the_catalog_lists_names_with_what_there_is_to_say_of_each(service, graft):
    service.answer("/catalog", CATALOG)
    rows = [" ".join(row.split()) for row in graft("catalog", "e").stdout.splitlines()]
    assert service.asked[0][2] == {"q": "e"}
    assert rows == [
        "datasets", "torchvision:MNIST", "",
        "models", "torchvision:resnet18 IMAGENET1K_V1", "torchvision:resnet50 IMAGENET1K_V1, IMAGENET1K_V2", "timm:vit_tiny", "",
        "losses", "CrossEntropyLoss label_smoothing 0.0", "",
        "optimizers", "LBFGS not here: evaluates the loss several times",
    ]  # fmt: skip
    many = {**EMPTY, "models": [f"timm:model{number}" for number in range(1500)]}
    service.answer("/catalog", many)
    assert "and 1,492 more: graft catalog QUERY, or --json" in graft("catalog").stdout
    assert json.loads(graft("catalog", "--json").stdout) == many


def test_where_no_name_fits_close_ones_are_told(service, graft):
    service.answer("/catalog", CATALOG)
    rows = graft("catalog", "resnt").stdout.splitlines()
    assert rows[0] == "No name contains 'resnt'. Close to it:"
    assert any("torchvision:resnet18" in row for row in rows[1:])
    service.answer("/catalog", EMPTY)
    assert graft("catalog", "zzz").stdout.splitlines() == ["No name contains 'zzz'. `graft catalog` lists what there is."]
