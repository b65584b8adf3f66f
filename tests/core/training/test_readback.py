"""The ring: every scalar comes back once, in order, as late as it was told and no later."""

import pytest
import torch

from core.training.readback import Readback

CPU = torch.device("cpu")


def test_on_the_cpu_a_scalar_comes_back_at_once():
    ring = Readback(CPU)
    assert ring.push(torch.tensor(0.5), "a") == [("a", 0.5)]
    assert ring.drain() == []


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_a_scalar_is_read_when_so_many_later_ones_were_pushed_and_the_rest_is_drained(lag):
    ring = Readback(CPU, lag=lag)
    seen = []
    for number in range(17):
        due = ring.push(torch.tensor(float(number)), number)
        assert len(due) == (1 if number >= lag else 0)
        seen += due
    assert len(seen) == 17 - lag
    seen += ring.drain()
    assert seen == [(number, float(number)) for number in range(17)]


def test_a_scalar_is_copied_when_it_is_pushed_not_when_it_is_read():
    ring = Readback(CPU, lag=2)
    loss = torch.tensor(1.0)
    ring.push(loss, None)
    loss.fill_(2.0)
    assert ring.drain() == [(None, 1.0)]


def test_a_loss_that_carries_a_graph_or_another_dtype_is_read_as_float32():
    ring = Readback(CPU)
    weight = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert ring.push(weight * 3, 0) == [(0, float(torch.tensor(0.3, dtype=torch.float32)))]


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device():
    device = torch.device("cuda")
    ring = Readback(device)
    seen = []
    torch.cuda.set_sync_debug_mode("error")  # any hidden synchronisation raises; waiting on the ring's own events does not
    try:
        for number in range(50):
            seen += ring.push(torch.full((), float(number), device=device), number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen + ring.drain() == [(number, float(number)) for number in range(50)]
