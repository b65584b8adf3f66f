"""The parameter groups of a job as they are now, and changed while it waits, runs or is paused."""

from __future__ import annotations

from typing import Any

import pytest

from api import examples


def row(name: str, of: str | None = None, **more: Any) -> dict[str, Any]:
    values = {"lr": 0.1, "betas": [0.9, 0.999], "weight_decay": 0.0}
    return {
        "name": name, "of": of or name, "hyperparameters": values, "schedule": None, "frozen": False, "until_epoch": None,
        "tensors": 1, "elements": 4, "parameters": [f"{name}.weight"], **more,
    }  # fmt: skip


TABLE = {
    "optimizer": "Adam", "executed_groups": 1, "fused": True, "parameters": [],
    "groups": [
        row("stem", frozen=True), row("head"), row("head/no_decay", of="head"), row("low", frozen=True, until_epoch=1),
        row("default"),
    ],
}  # fmt: skip
PLAN = {"groups": {**TABLE, "groups": [{k: v for k, v in one.items() if k != "parameters"} for one in TABLE["groups"]]}}


def adjusted(number: int, group: str, step: int, **changes: Any) -> tuple[int, str, dict[str, Any]]:
    told = {key: {"from": None, "to": value} for key, value in changes.items()}
    return step, "adjusted", {"id": number, "group": group, "step": step, "changes": told, "by": "api", "refused": None}


def now(client: Any, job_id: int) -> dict[str, dict[str, Any]]:
    rows = client.get(f"/jobs/{job_id}/groups").json()["groups"]
    return {one["name"]: {**one["present"], "frozen": one["frozen"]} for one in rows}


def ask(client: Any, job_id: int, group: str, **body: Any) -> Any:
    return client.patch(f"/jobs/{job_id}/groups/{group}", json=body)


def test_a_queued_job_has_the_groups_of_its_plan_and_what_is_asked_of_it(bench, client):
    job_id = bench.job(plan=PLAN)
    answer = ask(client, job_id, "head/no_decay", lr=0.5, at_step=10)
    assert answer.status_code == 202
    number = answer.json()["id"]
    asked = {"id": number, "group": "head/no_decay", "changes": {"lr": 0.5}, "at_step": 10, "by": "api"}
    assert answer.json() == asked
    told = client.get(f"/jobs/{job_id}/groups").json()
    assert [one["name"] for one in told["groups"]] == ["stem", "head", "head/no_decay", "low", "default"]
    assert told["pending"] == [asked]
    assert now(client, job_id)["head/no_decay"]["lr"] == 0.1, "it is still to come"
    assert ask(client, job_id, "head%2Fno_decay", lr=0.5).status_code == 202


@pytest.mark.parametrize("example", examples.GROUP_PATCHES)
def test_the_patches_of_the_openapi_page_work(bench, client, example):
    job_id = bench.job(plan=PLAN, steps=2000)
    assert ask(client, job_id, "stem", **examples.GROUP_PATCHES[example]["value"]).status_code == 202


def test_what_was_adjusted_is_what_the_groups_have_now_and_what_a_rewind_took_back_is_to_come(bench, client):
    job_id = bench.running(plan=PLAN)
    bench.append(job_id, (0, "groups", TABLE))
    bench.losses(job_id, first=0, losses=[1.0] * 10)
    first = ask(client, job_id, "head", lr=0.5, betas=[0.8, 0.9]).json()["id"]
    second = ask(client, job_id, "stem", freeze=False).json()["id"]
    bench.append(job_id, adjusted(first, "head", 10, lr=0.5, betas=[0.8, 0.9]), adjusted(second, "stem", 10, freeze=False))
    found = now(client, job_id)
    assert (found["head"]["lr"], found["head/no_decay"]["betas"], found["default"]["lr"]) == (0.5, [0.8, 0.9], 0.001)
    assert not found["stem"]["frozen"]
    assert client.get(f"/jobs/{job_id}/groups").json()["pending"] == []

    rates = {"stem": 0.1, "head": 0.4, "head/no_decay": 0.4, "low": 0.1, "default": 0.1}
    data = {"epoch": 0, "first": 10, "losses": [1.0] * 5, "lr": rates}
    bench.append(job_id, (15, "iterations", data))
    assert now(client, job_id)["head"]["lr"] == 0.4, "a schedule has gone on from it"
    bench.append(job_id, (5, "rewound", {"to_step": 5}))
    found = now(client, job_id)
    assert (found["head"]["betas"], found["stem"]["frozen"]) == ([0.9, 0.999], True)
    pending = client.get(f"/jobs/{job_id}/groups").json()["pending"]
    assert [(one["id"], one["at_step"]) for one in pending] == [(first, 10), (second, 10)]


def test_a_group_that_thaws_by_itself_is_no_longer_frozen(bench, client):
    job_id = bench.running(plan=PLAN)
    bench.append(job_id, (0, "groups", TABLE))
    assert now(client, job_id)["low"]["frozen"]
    bench.epoch(job_id, epoch=0, step=50)
    assert not now(client, job_id)["low"]["frozen"]


@pytest.mark.parametrize(
    ("group", "body", "status", "pointer", "said"),
    [
        ("haed", {"lr": 0.1}, 404, None, "no parameter group 'haed'. Did you mean 'head'?"),
        ("head", {"lr": -1}, 422, "/lr", "greater than or equal to 0"),
        ("head", {"lr": "0.1"}, 422, "/lr", "valid number"),
        ("head", {"momentum": 0.9}, 422, "/momentum", "a group of Adam has no momentum. Known: lr, betas, weight_decay, freeze."),
        ("head", {"betas": [0.9, 1.5]}, 422, "/betas/1", "less than 1"),
        ("head", {"wieght_decay": 0.1}, 422, "/wieght_decay", "Did you mean 'weight_decay'?"),
        ("head", {"at_step": 3}, 422, "", "nothing changes"),
        ("head", {"lr": 0.1, "at_step": 100}, 422, "/at_step", "the job has 100 steps"),
        ("head", {"lr": 0.1, "at_step": 9}, 409, None, "is at step 10"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(bench, client, group, body, status, pointer, said):
    job_id = bench.running(plan=PLAN)
    bench.losses(job_id, first=0, losses=[1.0] * 10)
    answer = ask(client, job_id, group, **body)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert pointer is None or answer.json()["errors"][0]["pointer"] == pointer
    assert client.get(f"/jobs/{job_id}/groups").json()["pending"] == []


def test_a_job_that_has_ended_or_is_being_cancelled_takes_no_change(bench, client):
    job_id = bench.running(plan=PLAN)
    client.post(f"/jobs/{job_id}/cancel")
    assert "is being cancelled" in ask(client, job_id, "head", lr=0.5).json()["detail"]
    bench.finish(job_id, "cancelled")
    answer = ask(client, job_id, "head", lr=0.5)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:graft:problem:conflict")
    assert ask(client, 10**9, "head", lr=0.5).status_code == 404


def test_a_paused_job_takes_it(bench, client):
    job_id = bench.job(plan=PLAN)
    client.post(f"/jobs/{job_id}/pause")
    assert ask(client, job_id, "head", lr=0.5).status_code == 202
    client.post(f"/jobs/{job_id}/resume")
    assert len(client.get(f"/jobs/{job_id}/groups").json()["pending"]) == 1


def test_the_last_group_that_trains_cannot_be_frozen_nor_one_after_the_other(bench, client):
    job_id = bench.job(plan=PLAN)
    assert ask(client, job_id, "default", freeze=True).status_code == 202
    refused = ask(client, job_id, "head", freeze=True)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/freeze")
    assert "from step 0 on every group would be frozen" in refused.json()["detail"]
    assert ask(client, job_id, "head", freeze=True, at_step=50).status_code == 202, "the second epoch, in which `low` trains"
    assert ask(client, job_id, "low", freeze=True, at_step=60).status_code == 422


def test_the_log_tells_it_in_a_line(bench, client):
    job_id = bench.running(plan=PLAN)
    change = {
        "lr": {"from": 0.001, "to": 0.0005},
        "betas": {"from": [0.9, 0.999], "to": [0.8, 0.9]},
        "freeze": {"from": True, "to": False},
    }
    data = {"id": 1, "group": "head", "step": 120, "changes": change, "by": "api", "refused": None}
    parts = {**data, "changes": {"lr": {"from": {"depth-0": 0.1, "depth-1": 0.2}, "to": 1.0}}}
    bench.append(job_id, (120, "adjusted", data), (120, "adjusted", parts))
    bench.append(job_id, (120, "adjusted", {**data, "changes": {}, "refused": "there is no such group"}))
    bench.finish(job_id)
    assert client.get(f"/jobs/{job_id}/logs").text.splitlines()[2:-2] == [
        "Step 120: group head, lr 0.001 -> 0.0005, betas (0.9, 0.999) -> (0.8, 0.9), freeze true -> false (by api)",
        "Step 120: group head, lr 0.1 | 0.2 -> 1 (by api)",
        "Step 120: group head, not changed: there is no such group (by api)",
    ]


def test_a_fork_from_the_start_takes_the_changes_with_it_each_at_its_step(bench, client):
    small = {
        "dataset": {"source": "sklearn:digits", "image_size": 32},
        "optimizer": {"groups": [{"name": "head", "params": "fc.*"}]},
    }
    job_id = bench.running(**small)
    bench.losses(job_id, first=0, losses=[1.0] * 20)
    bench.append(job_id, adjusted(7, "head", 12, lr=0.5), adjusted(8, "head", 20, freeze=False))
    bench.checkpoint(job_id, epoch=0, step=20, top1=0.5)
    fork = client.post(f"/jobs/{job_id}/fork?adjustments=true", json={"name": "again"})
    assert fork.status_code == 201, fork.text
    assert (fork.json()["forked_from"], fork.json()["spec"]["pretrained"]) == ({"job": job_id, "step": None}, None)
    pending = client.get(f"/jobs/{fork.json()['id']}/groups").json()["pending"]
    assert [(one["changes"], one["at_step"], one["by"]) for one in pending] == [
        ({"lr": 0.5}, 12, f"job {job_id}"), ({"freeze": False}, 20, f"job {job_id}"),
    ]  # fmt: skip
    refused = client.post(
        f"/jobs/{job_id}/fork?adjustments=true", json={"optimizer": {"groups": [{"name": "top", "params": "fc.*"}]}}
    )
    assert "there is no parameter group 'head'" in refused.json()["errors"][0]["message"]
    both = client.post(f"/jobs/{job_id}/fork?adjustments=true&checkpoint=best", json={})
    assert both.json()["errors"][0]["pointer"] == "query/adjustments"
