"""The samples of a step are those that a job really reads for it."""

from __future__ import annotations

import pytest
import torch

from core.data import tiers
from core.data.datasets import open_dataset
from core.data.forensics import samples_of, samples_request, step_windows
from core.errors import SpecError
from core.events import Iteration
from core.spec import LoaderSpec
from core.training.job import fit


@pytest.mark.parametrize(
    "loader",
    [{"batch_size": 64}, {"batch_size": 101, "shuffle": False}, {"batch_size": 300, "drop_last": True}],
    ids=["ragged", "lone last, in order", "dropped"],
)
def test_the_samples_of_each_step_are_those_that_were_read_for_it(tiny_spec, places, tmp_path, monkeypatch, loader) -> None:
    """Read from the source, batch by batch, by a whole job of two epochs; its validation is told apart by its size."""
    read: list[list[int]] = []

    def noted(self, indices):
        read.append(list(indices))
        return torch.zeros((len(indices), 1, 8, 8), dtype=torch.uint8), {}

    monkeypatch.setattr(tiers.Decoder, "__getitems__", noted)
    spec = tiny_spec(epochs=2, loader=loader)
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    taken: list[list[int]] = []
    for event in fit(spec, places.model_copy(update={"resident_bytes": 0}), tmp_path / "job"):
        if isinstance(event, Iteration):
            taken.append(read[-1])
        elif event[1].kind == "checkpoint":
            read.clear()
    found = [samples_of(spec, dataset, step) for step in range(len(taken))]
    assert [[sample.index for sample in one.samples] for one in found] == taken
    per_epoch = len(taken) // 2
    assert [(one.step, one.epoch, one.batches) for one in found] == [
        (step, step // per_epoch, [step % per_epoch]) for step in range(len(taken))
    ]
    for sample in found[-1].samples[:5]:
        assert (sample.name, sample.label) == (
            dataset.train.name(sample.index), dataset.classes[int(dataset.train.labels[sample.index])],
        )  # fmt: skip
    with pytest.raises(SpecError, match=f"no step {len(taken)}; its steps are 0 to {len(taken) - 1}"):
        samples_of(spec, dataset, len(taken))


def test_a_step_may_be_several_batches_and_the_last_of_an_epoch_fewer() -> None:
    windows = step_windows(23, LoaderSpec(batch_size=4), accumulate=4)
    assert [[number for number, _ in window] for window in windows] == [[0, 1, 2, 3], [4, 5]]
    assert windows[1][-1][1] == (20, 23)


def test_the_samples_of_an_accumulated_step_are_those_of_its_batches(tiny_spec, places) -> None:
    plain, gathered = (tiny_spec(training={"epochs": 2, "accumulate": size}) for size in (1, 3))
    dataset = open_dataset(plain.dataset, places, 0)
    for step, epoch, batches in [(0, 0, [0, 1, 2]), (8, 0, [24, 25]), (10, 1, [3, 4, 5])]:
        found = samples_of(gathered, dataset, step)
        assert (found.epoch, found.batches) == (epoch, batches)
        assert found.samples == [one for batch in batches for one in samples_of(plain, dataset, 26 * epoch + batch).samples]
    with pytest.raises(SpecError, match="no step 18; its steps are 0 to 17"):
        samples_of(gathered, dataset, 18)


def test_another_dataset_tells_no_samples(tiny_spec, places) -> None:
    payload = {"spec": tiny_spec().model_dump(mode="json"), "places": places.model_dump(mode="json"), "step": 3}
    derived = samples_request({**payload, "fingerprint": None})
    assert len(derived["found"]["samples"]) == 64
    assert samples_request({**payload, "fingerprint": derived["fingerprint"]}) == derived
    assert samples_request({**payload, "fingerprint": "0" * 64}) == {**derived, "found": None}
