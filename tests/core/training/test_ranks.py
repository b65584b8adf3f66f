"""Several ranks are one: real processes that meet by gloo on the CPU, against one process with the same batches."""

from __future__ import annotations

import json
import shutil
import socket
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from core.data.batches import Loader
from core.data.preprocessing import Preprocessing
from core.data.tiers import Resident
from core.places import Places
from core.training.ranks import Ranks
from sandbox import Limits, Sandbox

SPEC = {
    "dataset": {"source": "sklearn:digits", "image_size": 8},
    "loader": {"batch_size": 256},  # 6 of them, and 81 samples: an odd number
    "optimizer": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1},
    "training": {"epochs": 2},
}
Train = Callable[..., dict[str, Any]]


Together = Callable[[str, dict[str, Any], int], list[dict[str, Any]]]


@pytest.fixture
def together(sandbox: Sandbox) -> Together:
    """Call a function of `ranked` in so many ranks that can meet; what each has told, in order."""

    def run(target: str, payload: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1])}

            def one(rank: int) -> dict[str, Any]:
                return sandbox.call(
                    target,
                    {**payload, "rank": rank},
                    limits=Limits(cores=1),
                    environment={**environment, "RANK": str(rank)},
                )

            with ThreadPoolExecutor(ranks) as pool:
                return list(pool.map(one, range(ranks)))

    return run


@pytest.fixture
def train(together: Together, tmp_path: Path) -> Train:
    """Train a model of `ranked` on so many ranks; what rank 0 said, after all of them said the same."""
    places = Places(inputs=tmp_path, cache=tmp_path / "cache", plugins=("ranked",)).model_dump(mode="json")

    def run(
        model: str, directory: str, ranks: int = 1, *, resume: list[Path] | None = None, halt: int | None = None,
        adjust: Any = (), device: str = "cpu", vanish: list[Path] | None = None, **parts: Any
    ) -> dict[str, Any]:  # fmt: skip
        name, _, dropout = model.partition(" ")
        keywords = {"dropout": float(dropout)} if dropout else {}
        spec = {**SPEC, "model": {"name": f"python:ranked:{name}", **keywords}, **parts}
        payload = {"spec": spec, "places": places, "directory": str(tmp_path / directory), "halt": halt, "device": device}
        payload |= {"adjust": list(adjust), "vanish": [str(path) for path in vanish or []]}
        if vanish:
            payload["places"] = {**places, "resident_bytes": 0, "image_cache_bytes": 0}  # so files are read in each epoch
        payload["resume"] = None if resume is None else [str(path) for path in resume]
        told = together("ranked:train", payload, ranks)
        assert all(other == told[0] for other in told)
        return told[0]

    return run


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same story, but for the order in which floats were added."""
    assert one["losses"].keys() == other["losses"].keys()
    assert list(one["losses"].values()) == pytest.approx(list(other["losses"].values()), rel=2e-4)
    assert one["samples"] == other["samples"]
    for (mean, validation), (its_mean, its_validation) in zip(one["epochs"], other["epochs"], strict=True):
        assert mean == pytest.approx(its_mean, rel=2e-4)
        assert validation == pytest.approx(its_validation, rel=2e-3)


def same_weights(one: Path, other: Path) -> None:
    ours, theirs = (safetensors.torch.load_file(place / "model.safetensors") for place in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["Plain", "Batched"])
def test_two_ranks_train_as_one_with_the_same_batches(train: Train, tmp_path: Path, model: str) -> None:
    one, two = train(model, "one"), train(model, "two", 2)
    alike(one, two)
    assert one["samples"] == [256] * 6 + [81] + [256] * 6 + [81]
    same_weights(tmp_path / "one/14", tmp_path / "two/14")


@pytest.mark.parametrize("model", ["Plain", "Batched"])
def test_a_rank_may_have_no_sample_of_the_last_batch(train: Train, model: str) -> None:
    parts = {"loader": {"batch_size": 323}, "training": {"epochs": 1}}  # 2 samples are left, for three ranks
    one, three = train(model, "one", **parts), train(model, "three", 3, **parts)
    assert one["samples"][-1] == 2
    alike(one, three)


def test_a_mean_that_is_weighted_by_class_is_one_over_all_ranks(train: Train) -> None:
    parts = {
        "loss": {"name": "CrossEntropyLoss", "weight": [9.0, 1, 1, 5, 1, 1, 0.1, 1, 1, 3], "ignore_index": 4},
        "training": {"epochs": 1},
    }
    alike(train("Plain", "one", **parts), train("Plain", "two", 2, **parts))


def test_two_ranks_augment_and_mix_as_one(train: Train) -> None:
    parts = {
        "dataset": {**SPEC["dataset"], "augment": "strong"},
        "training": {"epochs": 1, "mixup": 0.4, "cutmix": 1.0},
        "loss": {"name": "CrossEntropyLoss", "weight": [9.0, 1, 1, 5, 1, 1, 0.1, 1, 1, 3], "label_smoothing": 0.1},
    }
    alike(train("Plain", "one", **parts), train("Plain", "two", 2, **parts))


@pytest.mark.parametrize("training", [{}, {"accumulate": 2}, {"mixup": 0.4}], ids=["plain", "windows of two batches", "mixed"])
def test_files_that_vanish_in_mid_epoch_are_left_out_by_all_ranks_at_that_step(
    train: Train, tmp_path: Path, training: dict[str, Any]
) -> None:
    """One of each rank's share of the last batch, which both read once the first step is over; of validation a whole batch."""
    parts = {
        "dataset": {"source": "folder:pets", "image_size": 8, "corrupt": "skip"},
        "loader": {"batch_size": 8, "shuffle": False},
        "training": {"epochs": 2, **training},
    }
    stories = []
    for ranks in (1, 2):
        shutil.rmtree(tmp_path / "pets", ignore_errors=True)
        for name in (f"{split}/{kind}/{at:02}" for split in ("train", "val") for kind in ("cats", "dogs") for at in range(20)):
            (path := tmp_path / f"pets/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            _drawn(name).save(path)
        gone = ["train/dogs/15", "train/dogs/16", *(f"val/cats/{at:02}" for at in range(8, 16)), "val/dogs/13"]
        stories.append(train("Plain", f"of {ranks}", ranks, vanish=[tmp_path / f"pets/{name}.png" for name in gone], **parts))
    one, two = stories
    alike(one, two)
    assert sum(two["samples"]) == 2 * 38, "in the epoch in which they vanish, too"
    assert (two["log"], two["left_out"]) == (one["log"], one["left_out"])
    assert two["left_out"][0] == [len(two["losses"]) // 2, "training", 0, [35, 36]]
    assert "epoch 1 went without 2 training and 9 validation images that cannot be read" in two["log"]


def _drawn(name: str) -> Image.Image:
    """A picture of its own for each name."""
    pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return Image.fromarray(pixels.numpy())


def test_a_validation_finds_the_same_on_several_ranks_also_where_one_of_them_sees_no_batch(together: Together) -> None:
    """Batches of 16 and a ragged one, one too few for three ranks, and a single one: each task."""
    alone, *_ = together("ranked:validate", {"sizes": [16, 30, 53]}, 1)
    shared = together("ranked:validate", {"sizes": [16, 30, 53]}, 3)
    assert shared[0] == shared[1] == shared[2]
    assert len(alone) == 9
    for case, found in alone.items():
        figures = {key: pytest.approx(value) for key, value in found["figures"].items()}
        assert shared[0][case] == {**found, "figures": figures, "per_class": approximately(found["per_class"])}, case


def approximately(columns: dict[str, Any]) -> dict[str, Any]:
    return {key: values and pytest.approx(values, rel=1e-6) for key, values in columns.items()}


def test_what_no_rank_uses_stays_as_it_is(train: Train, tmp_path: Path) -> None:
    """A gradient of zeros instead of none would let the weight decay at it."""
    train("Plain", "two", 2, training={"epochs": 1}, checkpoint={"every": {"steps": 1}})
    before, after = (safetensors.torch.load_file(tmp_path / "two" / step / "model.safetensors") for step in ("1", "7"))
    assert torch.equal(before["unused.weight"], after["unused.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_two_ranks_go_on_from_within_an_epoch_bit_for_bit_each_with_its_own_dropout(train: Train, tmp_path: Path) -> None:
    every = {"checkpoint": {"every": {"steps": 5}}}
    whole = train("Batched 0.3", "whole", 2, **every)
    rest = train("Batched 0.3", "rest", 2, resume=[tmp_path / "whole/10"], **every)
    assert rest["losses"] == {step: loss for step, loss in whole["losses"].items() if int(step) >= 10}
    for name in ("model.safetensors", "state.safetensors"):
        assert (tmp_path / "rest/14" / name).read_bytes() == (tmp_path / "whole/14" / name).read_bytes()
    state = safetensors.torch.load_file(tmp_path / "whole/10/state.safetensors")
    assert not torch.equal(state["random/torch"], state["random-1/torch"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_at_the_same_place_in_the_data(
    train: Train, tmp_path: Path, before: int, after: int
) -> None:
    every = {"checkpoint": {"every": {"steps": 5}}}
    whole = train("Plain", "whole", before, **every)
    rest = train("Plain", "rest", after, resume=[tmp_path / "whole/10"], **every)
    assert rest["rewound"] == 10
    assert list(rest["losses"].values()) == pytest.approx(list(whole["losses"].values())[10:], rel=2e-4)
    position = [
        json.loads((tmp_path / place / "state.json").read_text())["progress"]["step"] for place in ("whole/14", "rest/14")
    ]
    assert position == [14, 14]


def test_what_rank_0_alone_wishes_all_do_after_the_same_step(train: Train, tmp_path: Path) -> None:
    halted = train("Plain", "halted", 2, halt=3)
    (stop,) = halted["saved"]
    assert stop == 4, "it is told with the losses of the step after"
    assert list(halted["losses"]) == [str(step) for step in range(stop)]
    rest = train("Plain", "rest", 2, resume=[tmp_path / "halted" / str(stop)])
    whole = train("Plain", "whole", 2)
    assert halted["losses"] | rest["losses"] == whole["losses"]


def test_what_rank_0_alone_is_asked_to_change_all_change_at_the_same_step(train: Train, tmp_path: Path) -> None:
    groups = {**SPEC["optimizer"], "groups": [{"name": "norms", "role": "norm"}]}
    changes = [["norms", {"freeze": True}], ["default", {"lr": 0.05, "betas": [0.5, 0.9]}], ["norms", {"freeze": False}]]
    asked = [[at, *change, due] for change, (at, due) in zip(changes, [(2, None), (5, None), (7, 11)], strict=True)]
    two = train("Batched", "two", 2, optimizer=groups, adjust=asked)
    steps = [step for step, _, _ in two["adjusted"]]
    assert steps == [3, 6, 11], "it is told with the losses of the step after; what is due later is known by then"
    same = [[1, *change, step] for change, step in zip(changes, steps, strict=True)]
    one = train("Batched", "one", optimizer=groups, adjust=same)
    assert one["adjusted"] == two["adjusted"]
    alike(one, two)
    same_weights(tmp_path / "one/14", tmp_path / "two/14")


def test_a_loss_that_is_no_number_on_one_rank_ends_all_at_that_step(train: Train) -> None:
    told = train("Diverges", "two", 2)
    assert "nan at step 2" in told["error"]
    assert len(told["losses"]) == 3


# --- shares ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_shares_of_all_ranks_are_the_batch_in_its_order(ranks: int) -> None:
    pixels = torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1)
    bounds, preprocessing = [(0, 8), (8, 15), (15, 17)], Preprocessing(1, (0, 0, 0), (1, 1, 1))
    loader = Loader(Resident(pixels), torch.arange(17), preprocessing, bounds=bounds, shuffle_seed=3)
    whole = [targets.tolist() for _, targets in loader.batches(5)]
    parts = [[targets.tolist() for _, targets in loader.batches(5, rank=rank, ranks=ranks)] for rank in range(ranks)]
    assert [[one for part in parts for one in part[batch]] for batch in range(3)] == whole
    for batch in range(3):
        sizes = [len(part[batch]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert loader.sizes() == [8, 7, 2]


def test_an_empty_share_of_files_is_an_empty_batch(draw: Any, places: Places) -> None:
    from core.data.datasets import open_dataset
    from core.data.tiers import Decoder, Streaming
    from core.spec import DatasetSpec

    draw({"pets/cats": 4, "pets/dogs": 4})
    images = open_dataset(DatasetSpec(source="folder:pets"), places, 0).train
    source = Streaming(Decoder(images, 8, 3), 0, torch.device("cpu"))
    assert [tuple(pixels.shape) for pixels, _ in source.batches(torch.arange(len(images)), [(0, 2), (2, 2), (2, 3)])] == [
        (2, 3, 8, 8), (0, 3, 8, 8), (1, 3, 8, 8),
    ]  # fmt: skip


def test_a_rank_alone_has_nothing_to_agree_on() -> None:
    alone = Ranks()
    assert (alone.agreed(True), alone.agreed(False), alone.first(lambda: 3), alone.gather("x")) == (True, False, 3, ["x"])
    norm = nn.BatchNorm1d(2)
    alone.adopt(model := nn.Sequential(norm), seed=0)
    assert model[0] is norm


# --- real GPUs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["Plain", "Batched"])
def test_two_gpus_train_as_one(train: Train, tmp_path: Path, model: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.fail("this test needs two GPUs; leave it out with -k 'not two_gpus'")
    exact = {"training": {"epochs": 2, "deterministic": True}}
    one, two = train(model, "one", device="cuda", **exact), train(model, "two", 2, device="cuda", **exact)
    alike(one, two)
    same_weights(tmp_path / "one/14", tmp_path / "two/14")


@pytest.mark.gpu
def test_two_gpus_agree_on_a_wish_though_losses_come_two_steps_late(train: Train) -> None:
    if torch.cuda.device_count() < 2:
        pytest.fail("this test needs two GPUs; leave it out with -k 'not two_gpus'")
    halted = train("Plain", "halted", 2, halt=3, device="cuda")
    (stop,) = halted["saved"]
    assert list(halted["losses"]) == [str(step) for step in range(stop)]


def test_ranks_that_diverge_go_back_together(train: Train) -> None:
    """The loss is no number in the third step, though one rank of two alone is to blame."""
    rules = {"epochs": 1, "divergence": {"non_finite": "rollback"}}
    told = train("Diverges", "two", 2, training=rules, checkpoint={"every": {"steps": 1}, "keep_last": 2})
    assert (told["error"], told["rewound"]) == (None, 1)
    assert told["adjusted"] == [[1, "default", ["lr"]]]
    assert told["saved"] == [1, 2, 2, 3, 4, 5, 6, 7]
    assert list(told["losses"]) == [str(step) for step in range(7)]
