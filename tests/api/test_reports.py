"""What the log says of a job, put together; and the files of its checkpoints."""

from __future__ import annotations

import hashlib

import pytest


def test_losses_hold_every_step_once_with_rewinds_applied(bench, client):
    job_id = bench.running()
    bench.losses(job_id, first=0, losses=[4.0, 3.0])
    bench.losses(job_id, first=2, losses=[2.0, 1.0])
    bench.append(job_id, (3, "rewound", {"to_step": 3}))
    bench.losses(job_id, first=3, losses=["inf", 0.5])
    assert client.get(f"/jobs/{job_id}/losses").json() == {"steps": 5, "losses": [4.0, 3.0, 2.0, "inf", 0.5]}


def test_losses_come_in_as_many_buckets_as_asked(bench, client):
    job_id = bench.running()
    bench.losses(job_id, first=0, losses=list(map(float, range(100))))
    answer = client.get(f"/jobs/{job_id}/losses?points=4").json()
    assert answer["steps"] == 100
    assert [(b["first"], b["last"], b["min"], b["max"], b["mean"], b["count"]) for b in answer["buckets"]] == [
        (0, 24, 0.0, 24.0, 12.0, 25),
        (25, 49, 25.0, 49.0, 37.0, 25),
        (50, 74, 50.0, 74.0, 62.0, 25),
        (75, 99, 75.0, 99.0, 87.0, 25),
    ]
    assert client.get(f"/jobs/{bench.job()}/losses?points=4").json() == {"steps": 0, "buckets": []}
    assert client.get(f"/jobs/{job_id}/losses?points=0").status_code == 422


@pytest.mark.parametrize("report", ["transfer", "groups"])
def test_a_report_is_404_with_a_reason_until_it_is_there(bench, client, transfer, groups, report):
    job_id = bench.running()
    answer = client.get(f"/jobs/{job_id}/{report}")
    assert answer.status_code == 404
    assert f"job {job_id} is running and has no" in answer.json()["detail"]
    bench.append(job_id, (0, report, {"transfer": transfer, "groups": groups}[report]))
    assert client.get(f"/jobs/{job_id}/{report}").status_code == 200


def test_the_transfer_report_is_the_one_of_the_log(bench, client, transfer):
    job_id = bench.running()
    bench.append(job_id, (0, "transfer", transfer))
    assert client.get(f"/jobs/{job_id}/transfer").json() == transfer


def test_the_groups_are_shown_with_their_present_lr_and_as_frozen_as_they_are_now(bench, client, groups):
    job_id = bench.running(steps=4, epochs=2)
    groups["groups"][1]["until_epoch"] = 1
    bench.append(job_id, (0, "groups", groups))

    def rows():
        answer = client.get(f"/jobs/{job_id}/groups").json()
        frozen = {row["names"][0]: row["frozen"] for row in answer["parameters"]}
        return {row["name"]: (row["present"]["lr"], row["frozen"]) for row in answer["groups"]}, frozen

    still = {"fc.weight": None, "conv.weight": "group"}
    assert rows() == ({"head": (0.01, False), "stem": (0.001, True)}, still)
    iterations = {"epoch": 0, "first": 0, "losses": [1.0, 1.0], "lr": {"head": 0.005, "stem": 0.0005}}
    bench.append(job_id, (2, "iterations", iterations))
    assert rows() == ({"head": (0.005, False), "stem": (0.0005, True)}, still)
    bench.epoch(job_id, epoch=0, step=2)
    assert rows() == ({"head": (0.005, False), "stem": (0.0005, False)}, {"fc.weight": None, "conv.weight": None})
    bench.append(job_id, (1, "rewound", {"to_step": 1}))
    assert rows()[0]["stem"] == (0.0005, True), "the epoch is not over yet"


def test_a_job_that_ended_before_its_report_says_so(bench, client):
    job_id = bench.job()
    client.post(f"/jobs/{job_id}/cancel")
    assert "it ended before there was a transfer report" in client.get(f"/jobs/{job_id}/transfer").json()["detail"]


def test_checkpoints_that_are_kept_are_listed_and_downloaded(bench, client):
    job_id = bench.running(checkpoint={"keep_last": 1, "keep_best": 1})
    for epoch, top1 in enumerate([0.5, 0.9, 0.7]):
        bench.checkpoint(job_id, epoch=epoch, step=(epoch + 1) * 10, top1=top1, weights=b"w" * (epoch + 1))
    kept = client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [(item["step"], item["best"], item["figures"]["top1"]) for item in kept] == [(20, True, 0.9), (30, False, 0.7)]
    assert [(item["validated"], item["weights_bytes"]) for item in kept] == [(True, 2), (True, 3)]
    for which, content in [("best", b"ww"), ("last", b"www"), ("20", b"ww"), ("30", b"www")]:
        answer = client.get(f"/jobs/{job_id}/checkpoints/{which}/weights.safetensors")
        assert answer.content == content
    assert answer.headers["etag"] == f'"{kept[1]["sha256"]}"'
    assert client.get(kept[0]["weights"]).content == b"ww"
    assert client.get(kept[0]["model"]).json() == {"classes": ["a", "b"]}


def test_a_download_takes_ranges_and_conditions(bench, client):
    job_id = bench.running()
    bench.checkpoint(job_id, epoch=0, step=10, top1=0.5, weights=b"0123456789")
    path = f"/jobs/{job_id}/checkpoints/last/weights.safetensors"
    etag = client.head(path).headers["etag"]
    assert client.get(path, headers={"Range": "bytes=4-"}).content == b"456789"
    for wrong in ("bytes=10-", "bytes=x"):
        refused = client.get(path, headers={"Range": wrong})
        assert (refused.status_code, refused.headers["content-range"]) == (416, "bytes */10")
        assert refused.headers["content-type"] == "application/problem+json"
    unchanged = client.get(path, headers={"If-None-Match": f'"other", {etag}'})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert client.get(path.replace("weights.safetensors", "model.json"), headers={"If-None-Match": etag}).status_code == 200


def test_a_checkpoint_that_is_not_there_is_404_with_those_that_are(bench, client):
    job_id = bench.running()
    nothing = client.get(f"/jobs/{job_id}/checkpoints/best/model.json")
    assert (nothing.status_code, nothing.json()["type"]) == (404, "urn:graft:problem:not-yet")
    folder = bench.checkpoint(job_id, epoch=0, step=10, top1=0.5)
    assert "it keeps those of steps 10" in client.get(f"/jobs/{job_id}/checkpoints/11/model.json").json()["detail"]
    assert client.get(f"/jobs/{job_id}/checkpoints/10/state.safetensors").status_code == 422
    odd = client.get(f"/jobs/{job_id}/checkpoints/newest/model.json")
    assert (odd.status_code, odd.json()["errors"]) == (
        422,
        [
            {
                "pointer": "path/which",
                "message": "this text does not fit. What fits: `best`, `last`, or the step of a checkpoint.",
            }
        ],
    )
    (fault,) = client.get("/jobs/clothes").json()["errors"]
    assert fault["message"] == "send a whole number. What fits: The job's `id`; `GET /jobs` lists them."
    (folder / "model.json").unlink()
    assert "not there any more" in client.get(f"/jobs/{job_id}/checkpoints/10/model.json").json()["detail"]


def test_a_large_file_arrives_whole(bench, client):
    job_id = bench.running()
    weights = bytes(range(256)) * 40_000
    bench.checkpoint(job_id, epoch=0, step=10, top1=0.5, weights=weights)
    got = client.get(f"/jobs/{job_id}/checkpoints/last/weights.safetensors").content
    assert hashlib.sha256(got).digest() == hashlib.sha256(weights).digest()
