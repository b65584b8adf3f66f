"""The log as text for people."""

from __future__ import annotations

import time

from core.events import Failure


def lines(client, job_id: int) -> list[str]:
    answer = client.get(f"/jobs/{job_id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.text.splitlines()


def test_the_articles_two_lines_count_iterations_within_their_epoch(bench, client):
    job_id = bench.running(steps=200, epochs=2)
    bench.losses(job_id, first=0, losses=[0.6] * 96)
    bench.losses(job_id, first=96, losses=[0.693147, "nan", 1e-9, 123456.0])
    bench.epoch(job_id, epoch=0, step=100, mean_loss=0.70123, top1=0.97314)
    bench.losses(job_id, first=100, losses=[0.25], epoch=1)
    bench.finish(job_id)
    found = lines(client, job_id)
    assert found[2] == "Epoch 1, iteration : 1, loss = 0.6000"
    assert found[98:] == [
        "Epoch 1, iteration : 97, loss = 0.6931",
        "Epoch 1, iteration : 98, loss = nan",
        "Epoch 1, iteration : 99, loss = 0.0000",
        "Epoch 1, iteration : 100, loss = 123456.0000",
        "Epoch 1 : Mean Loss was 0.7012",
        "Epoch 1 : Validation loss was 0.4000, top1 was 0.9731",
        "Epoch 2, iteration : 1, loss = 0.2500",
        "The job succeeded (by bench)",
        "End : succeeded",
    ]


def test_a_checkpoint_of_a_pause_is_not_called_the_best_before_it_was_validated(bench, client):
    job_id = bench.running(steps=10, epochs=1)
    bench.checkpoint(job_id, epoch=0, step=1, top1=None)
    assert lines(client, job_id)[-1] == "Epoch 1 : Checkpoint at step 1, not validated"


def test_states_checkpoints_rewinds_printed_lines_and_the_failure_are_told(bench, client):
    job_id = bench.running(steps=10, epochs=1)
    bench.append(
        job_id,
        (0, "log", {"level": "info", "message": "hello\x1b[31m\r\nthere\tü"}),
        (0, "log", {"level": "warning", "message": "UserWarning: slow"}),
    )
    bench.losses(job_id, first=0, losses=[1.0])
    bench.checkpoint(job_id, epoch=0, step=1, top1=0.5)
    rule = {"rule": "nan", "action": "rollback", "step": 1, "message": "the loss became nan: back to step 0"}
    bench.append(job_id, (0, "rewound", {"to_step": 0}), (0, "rule", rule))
    bench.finish(job_id, "failed", Failure(type="data", message="a.png is no image", hint="Remove it."))
    assert lines(client, job_id) == [
        "The job waits in its queue (by api)",
        "Attempt 1 runs (by bench)",
        "hello [31m  there\tü",
        "Warning : UserWarning: slow",
        "Epoch 1, iteration : 1, loss = 1.0000",
        "Epoch 1 : Checkpoint at step 1, the best so far",
        "Training goes on from step 0 : what the lines above say beyond it is void",
        "Rule nan : the loss became nan: back to step 0",
        "The job failed (by bench)",
        "Failure : data: a.png is no image",
        "Next : Remove it.",
        "End : failed",
    ]


def test_the_transfer_and_the_groups_take_a_few_lines(bench, client, transfer, groups):
    job_id = bench.running()
    bench.append(job_id, (0, "transfer", transfer), (0, "groups", groups))
    bench.finish(job_id)
    assert lines(client, job_id)[2:-2] == [
        "Transfer : 1 of 2 tensors of the model (100.0 % of the elements outside its head) from file:a.pth",
        "Optimizer : Adam with 2 parameter groups",
        "  head : 1 tensor, lr 0.01",
        "  stem : 1 tensor, frozen",
    ]


def test_following_gives_the_same_text_as_it_comes(bench, client):
    job_id = bench.running()
    with client.stream("GET", f"/jobs/{job_id}/logs?follow=true") as response:
        text = response.iter_text()
        assert next(text) == "The job waits in its queue (by api)\nAttempt 1 runs (by bench)\n"
        bench.losses(job_id, first=0, losses=[0.5])
        assert next(text) == "Epoch 1, iteration : 1, loss = 0.5000\n"
        bench.finish(job_id)
        rest = "".join(text)
    assert rest.endswith("End : succeeded\n")


def test_a_tail_is_the_last_lines_and_its_seq_is_where_they_go_on(bench, client):
    job_id = bench.running(steps=1000, epochs=1)
    for first in range(0, 900, 3):
        bench.losses(job_id, first=first, losses=[0.5, 0.25, 0.125])
    whole = lines(client, job_id)
    for count in (0, 1, 2, 4, 400, 5000):
        answer = client.get(f"/jobs/{job_id}/logs?tail={count}")
        assert answer.text.splitlines() == whole[len(whole) - min(count, len(whole)) :]
        assert answer.headers["graft-seq"] == str(bench.last_seq(job_id))
    with client.stream("GET", f"/jobs/{job_id}/logs?tail=2&follow=true") as response:
        text, seq = response.iter_text(), response.headers["graft-seq"]
        assert next(text) == "Epoch 1, iteration : 899, loss = 0.2500\nEpoch 1, iteration : 900, loss = 0.1250\n"
        bench.losses(job_id, first=900, losses=[0.75])
        bench.finish(job_id)
        rest = "".join(text)
    assert rest.startswith("Epoch 1, iteration : 901, loss = 0.7500\n")
    assert rest.endswith("End : succeeded\n")
    assert client.get(f"/jobs/{job_id}/logs?after={seq}").text == rest


def test_a_hundred_thousand_iterations_are_text_in_a_moment(bench, client):
    job_id = bench.running(steps=100_000, epochs=1)
    for first in range(0, 100_000, 1000):
        bench.losses(job_id, first=first, losses=[0.12345] * 1000)
    bench.finish(job_id)
    began = time.monotonic()
    assert len(lines(client, job_id)) == 100_004
    assert time.monotonic() - began < 30  # 0.3 s on an idle core; minutes, if it were quadratic
