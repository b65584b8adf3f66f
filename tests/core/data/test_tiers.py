"""Three tiers, one set of batches: chosen by bytes, filled from disk, and without what cannot be read."""

import random
import resource
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image

from core import prepare as preparing
from core.data import placing
from core.data.batches import make_loader
from core.data.datasets import open_dataset
from core.data.images import ArrayImages, FileImages
from core.data.placing import Room, Tier, choose, room_on
from core.data.preprocessing import Preprocessing
from core.data.tiers import processes
from core.errors import DataError
from core.events import EpochData, Iteration, LeftOutData, LogData
from core.models.features import Featured
from core.plan import plan
from core.prepare import prepare
from core.spec import DatasetSpec, LoaderSpec
from core.training.job import fit
from core.training.left_out import Listing, agree, check
from core.training.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12, of workers

CPU = torch.device("cpu")
PLAIN = Preprocessing(8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
LONE = """
from torch import nn


class Lone(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, num_classes))
"""
TIERS = ("resident", "cached", "streaming")


@pytest.fixture
def pets(places):
    """Open 24 images of noise in two classes, below `folder:pets`; `spoil` first makes four of them unreadable."""

    def make(*, spoil=False, seed=0):
        noise = random.Random(0)
        for kind in ("cats", "dogs"):
            (places.inputs / "pets" / kind).mkdir(parents=True, exist_ok=True)
            for index in range(12):
                image = Image.frombytes("RGB", (12, 10), noise.randbytes(360))
                image.save(places.inputs / f"pets/{kind}/{index:02}.{'jpg' if index == 5 else 'png'}")
        if spoil:
            truncated = places.inputs / "pets/cats/05.jpg"
            truncated.write_bytes(truncated.read_bytes()[:-300])
            (places.inputs / "pets/cats/07.png").write_bytes(b"")
            (places.inputs / "pets/dogs/02.png").write_text("no picture")
        dataset = open_dataset(DatasetSpec(source="folder:pets"), places, seed)
        if spoil:
            (places.inputs / "pets/dogs/09.png").unlink()
        return dataset

    return make


@pytest.fixture
def load(places):
    def make(images, tier="resident", *, train=True, corrupt="fail", say=lambda _: None, workers=0, batch_size=4, **limits):
        return make_loader(
            images, LoaderSpec(batch_size=batch_size, workers=workers), PLAIN, channels=3, seed=0, train=train, device=CPU,
            places=places.model_copy(update=limits), tier=Tier(tier, 0, ""), on_corrupt=corrupt, say=say,
        )  # fmt: skip

    return make


@pytest.fixture
def decoded(monkeypatch):
    """The names of all images that were decoded in this process."""
    seen = []
    read = placing.Decoder.__getitems__

    def watched(decoder, indices):
        seen.extend(decoder.images.name(index) for index in indices)
        return read(decoder, indices)

    monkeypatch.setattr(placing.Decoder, "__getitems__", watched)
    return seen


def whole(loader, epoch=0, **share):
    """An epoch as one tensor per batch: pixels, and the label beside them."""
    return [torch.cat([images.flatten(1), labels[:, None]], dim=1) for images, labels in loader.batches(epoch, **share)]


def same(ones, others):
    return len(ones) == len(others) and all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def entries(places):
    return list(places.images_cache.glob("[!.]*"))


# --- which tier --------------------------------------------------------------------------------------------------------------


def test_the_tier_follows_from_the_bytes_and_says_by_which_numbers(places, pets):
    images = pets().train
    size = len(images) * 3 * 64
    held = choose(images, 8, 3, places, Room(size, "all of it"))
    assert held == Tier("resident", size, "4.22 kB of the 4.22 kB that may be held in memory (all of it)")
    more = choose(images, 8, 3, places, Room(size - 1, "all of it"))
    assert more == Tier(
        "cached", size, "4.22 kB, more than the 4.22 kB that may be held in memory (all of it): decoded once, to disk"
    )
    full = choose(images, 8, 3, places.model_copy(update={"image_cache_bytes": 4096}), Room(0, "none"))
    assert full.name == "streaming"
    assert "and than the 4.1 kB for decoded images on disk" in full.why
    arrays = ArrayImages(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9), "train")
    assert choose(arrays, 8, 3, places, Room(0, "none")).why.endswith("not image files, so not kept decoded on disk")


def test_without_a_setting_half_of_what_a_gpu_has_free_may_be_held(places, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 << 30, 140 << 30))
    gpu = torch.device("cuda")
    assert room_on(gpu, places).bytes == 50 << 30
    assert room_on(CPU, places).bytes == room_on(None, places).bytes == 4 << 30
    assert room_on(gpu, places.model_copy(update={"resident_bytes": 7})).bytes == 7


def test_the_plan_and_the_job_have_one_answer_for_both_splits(places, pets, tiny_spec):
    dataset = pets()
    sizes = [len(images) * 3 * 64 for images in (dataset.train, dataset.validation)]
    spec = tiny_spec(dataset={"source": "folder:pets", "image_size": 8})
    for limit, tiers in ((sum(sizes), ["resident"] * 2), (sizes[0], ["resident", "cached"]), (0, ["cached"] * 2)):
        there = places.model_copy(update={"resident_bytes": limit})
        planned = plan(spec, there)
        assert [planned.tiers[split].tier for split in ("train", "validation")] == tiers
        assert [planned.tiers[split].bytes for split in ("train", "validation")] == sizes
        assert planned.memory.data == sum(size for size, tier in zip(sizes, tiers, strict=True) if tier == "resident")
        assert not entries(places), "a plan decodes nothing"
    for limit, tiers in ((sum(sizes), ["resident"] * 2), (sizes[0], ["resident", "cached"])):
        made = prepare(spec, places.model_copy(update={"resident_bytes": limit}), CPU)
        assert [made.train.tier, made.validation.tier] == tiers


# --- the same batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spoil", "workers"), [(False, 0), (True, 0), (True, 1)])
def test_all_tiers_give_the_same_batches_whatever_cannot_be_read(pets, load, spoil, workers):
    images = pets(spoil=spoil).train
    corrupt = "skip" if spoil else "fail"
    kinds = [load(images, tier, corrupt=corrupt, workers=workers) for tier in TIERS]
    assert [loader.tier for loader in kinds] == list(TIERS)
    first, *others = kinds
    assert sorted(images.name(index) for index in first.corrupt) == (
        ["cats/05.jpg", "cats/07.png", "dogs/02.png", "dogs/09.png"] if spoil else []
    )
    for epoch in (0, 1):
        expected = whole(first, epoch)
        assert [len(batch) for batch in expected] == first.sizes(epoch)
        assert sum(first.sizes(epoch)) == first.samples == (18 if spoil else 22)
        for other in others:
            assert same(whole(other, epoch), expected)
            assert same(whole(other, epoch, start=2), expected[2:]), "and after a resume"
            parts = [whole(other, epoch, rank=rank, ranks=2) for rank in (0, 1)]
            assert same([torch.cat(pair) for pair in zip(*parts, strict=True)], expected), "and of two ranks"
    for loader in kinds:
        loader.close()


def test_a_sample_is_left_out_where_it_would_be_and_the_others_stay(pets, load):
    sound = whole(load(pets().train))
    spoilt = load(pets(spoil=True).train, corrupt="skip")
    order = spoilt.order(0)
    at = 0
    for before, after in zip(sound, whole(spoilt), strict=True):
        left = [place for place in range(len(before)) if int(order[at + place]) not in spoilt.corrupt]
        at += len(before)
        assert torch.equal(before[left], after)


@pytest.mark.parametrize(("tier", "workers"), [("resident", 0), ("cached", 0), ("streaming", 0), ("streaming", 1)])
def test_by_default_what_cannot_be_read_ends_the_job_by_its_name(pets, load, tier, workers):
    images = pets(spoil=True).train
    with pytest.raises(DataError, match=r"^the image (cats|dogs)/\d\d\.(jpg|png) cannot be read") as caught:
        whole(load(images, tier, workers=workers))
    assert "Traceback" not in str(caught.value)
    assert 'dataset.corrupt "skip"' in caught.value.hint
    load(images, "cached", corrupt="skip")
    with pytest.raises(DataError, match="cannot be read"):
        whole(load(images, tier))  # another job went on without it; this one still may not


# --- the disk ------------------------------------------------------------------------------------------------------------------


def test_the_second_job_decodes_nothing_on_any_tier_that_keeps_it(places, pets, load, decoded):
    dataset = pets()
    expected = whole(load(dataset.train))
    whole(load(dataset.validation, train=False))
    assert sorted(set(decoded)) == sorted(decoded), "once each: validation finds its own beside those of training"
    assert len(decoded) == 24
    for tier in ("resident", "cached"):
        assert same(whole(load(dataset.train, tier)), expected)
        other = open_dataset(DatasetSpec(source="folder:pets"), places, 7).train
        assert not same(whole(load(other, tier)), expected), "another seed holds out others"
    assert len(decoded) == 24
    assert len(entries(places)) == 1


def test_a_split_that_is_no_part_or_a_small_one_is_kept_as_itself(places, pets, load, decoded):
    validation = pets().validation
    whole(load(validation, train=False))
    assert len(decoded) == len(validation) == 2


def test_the_cache_may_be_deleted_while_it_is_read(places, pets, load):
    images = pets().train
    expected = whole(load(images))
    loader = load(images, "cached")
    batches = loader.batches(0)
    next(batches)
    shutil.rmtree(places.cache)
    assert len(list(batches)) == len(expected) - 1
    assert same(whole(loader), expected)
    assert same(whole(load(images, "cached")), expected), "and is made anew"
    assert len(entries(places)) == 1


@pytest.mark.parametrize("tier", ["resident", "cached"])
def test_where_the_disk_is_full_the_job_goes_on_and_its_log_says_so(places, pets, load, tier):
    images = pets().train
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        loader = load(images, tier, say=said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said == ["the decoded images are not kept on disk: File too large"]
    assert (loader.tier, entries(places)) == ("resident" if tier == "resident" else "streaming", [])
    assert same(whole(loader), whole(load(images)))


def test_files_that_change_while_they_are_decoded_are_not_kept(places, pets, load, decoded, monkeypatch):
    images = pets().train
    read = placing.Decoder.__getitems__

    def touched(decoder, indices):
        (places.inputs / "pets/cats/00.png").touch()
        return read(decoder, indices)

    with monkeypatch.context() as patch:
        patch.setattr(placing.Decoder, "__getitems__", touched)
        loader = load(images)
    assert entries(places) == []
    again = open_dataset(DatasetSpec(source="folder:pets"), places, 0).train
    assert same(whole(load(again, "cached")), whole(loader))
    assert len(decoded) == 48


def test_as_many_processes_read_as_help(pets, monkeypatch):
    many = FileImages(Path(), ["none.png"] * 256, torch.zeros(256))
    arrays = ArrayImages(torch.zeros(256, 3, 8, 8, dtype=torch.uint8), torch.zeros(256), "train")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert [processes(None, images) for images in (many, pets().train, arrays)] == [6, 0, 0]
    assert [processes(workers, arrays) for workers in (0, 3)] == [0, 3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert processes(None, many) == 0


def test_long_decoding_says_how_far_it_is(pets, load, monkeypatch):
    monkeypatch.setattr(placing, "_TOLD_EACH", 0)
    said = []
    load(pets().train, say=said.append)
    assert said[0].startswith("decoding images: 24 of 24 (100%), ")


# --- in mid-epoch --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("corrupt", ["fail", "skip"])
def test_a_file_that_goes_in_mid_epoch(places, pets, load, tier, corrupt):
    images = pets().train
    sound = whole(load(images))
    loader = load(images, tier, corrupt=corrupt)
    gone = int(loader.order(0)[9])  # in the third batch
    batches = loader.batches(0)
    got = [next(batches)]
    (places.inputs / "pets" / images.name(gone)).unlink()
    if tier != "streaming":
        assert len([*got, *batches]) == len(sound), "it was read before"
        assert not loader.corrupt
    elif corrupt == "fail":
        with pytest.raises(DataError, match=f"^the image {images.name(gone)} cannot be read"):
            list(batches)
    else:
        assert [len(labels) for _, labels in [*got, *batches]] == [4, 4, 3, 4, 4, 2]
        assert list(loader.corrupt) == [gone]
        agree(loader, Ranks().gather)
        assert (loader.sizes(0), loader.samples) == ([4, 4, 3, 4, 4, 2], 21), "from then on it is known"


def test_what_one_rank_cannot_read_is_left_out_by_all(pets, load):
    loader = load(pets().train, corrupt="skip")
    loader.leave_out({7: "cannot be read here"})
    agree(loader, lambda mine: [{2: "cannot be read there", 7: "nor there"}, mine])
    assert loader.corrupt == {2: "cannot be read there", 7: "cannot be read here"}
    assert sum(loader.sizes(0)) == 20


def test_a_lone_sample_is_refused_where_the_model_needs_two(places, plugins_dir, draw, tiny_spec):
    (plugins_dir / "graft_lone.py").write_text(LONE)
    draw({"pets/train/cats": 4, "pets/train/dogs": 4, "pets/val/cats": 1, "pets/val/dogs": 1})
    (places.inputs / "pets/train/cats/0.png").write_bytes(b"")
    spec = tiny_spec(
        dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"}, loader={"batch_size": 2, "shuffle": False},
    )  # fmt: skip
    assert prepare(spec, places, CPU).train.sizes(0) == [1, 2, 2, 2], "this one's norms see nine pixels of it"
    lone = spec.model_copy(update={"model": spec.model.model_copy(update={"name": "python:graft_lone:Lone"})})
    with pytest.raises(DataError, match="leaves batch 1 of epoch 1 with one image, and this model cannot train on one alone"):
        prepare(lone, places.model_copy(update={"plugins": ("graft_lone",)}), CPU)


def test_a_batch_of_which_nothing_is_left_is_refused_before_the_first_step(pets, load):
    dataset = pets(spoil=True)
    loader, validation = load(dataset.train, corrupt="skip", batch_size=1), load(dataset.validation, train=False, corrupt="skip")
    with pytest.raises(DataError, match=r"4 training images cannot be read, which leaves batch \d+ of epoch 1 with no image"):
        check(loader, validation, 3, lambda: True)
    small = load(dataset.train, corrupt="skip", batch_size=2)
    small.leave_out(dict.fromkeys(small.order(1)[:1].tolist(), "gone"))
    small.leave_out(dict.fromkeys(small.order(0)[:1].tolist(), "gone"))
    with pytest.raises(DataError, match=r"with (no image|one image, and this model cannot train on one alone)$"):
        check(small, validation, 3, lambda: False)
    validation.leave_out({0: "gone", 1: "gone"})
    with pytest.raises(DataError, match="none of the 2 validation images can be read"):
        check(loader, validation, 3, lambda: True)
    assert whole(validation) == [], "and of validation such a batch is none"
    with pytest.raises(DataError, match="of a batch no image is left that can be read"):
        whole(loader)


# --- a job ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(places, tiny_spec, tmp_path):
    """Run a job on `folder:pets` that skips; (its iterations, its warnings, its epochs)."""

    def run(name, *, resident=True, **more):
        spec = tiny_spec(
            epochs=2, dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"}, loader={"batch_size": 8},
            checkpoint={"every": {"steps": 1}},
        )  # fmt: skip
        there = places if resident else places.model_copy(update={"resident_bytes": 0, "image_cache_bytes": 0})
        with closing(fit(spec, there, tmp_path / name, **more)) as job:
            events = list(job)
        data = [event[1] for event in events if not isinstance(event, Iteration)]
        return (
            [event for event in events if isinstance(event, Iteration)],
            [one.message for one in data if isinstance(one, LogData)],
            [one for one in data if isinstance(one, EpochData)],
        )

    return run


def test_a_job_goes_on_without_them_and_lists_them(pets, told, tmp_path):
    pets(spoil=True)
    shutil.copy(tmp_path / "inputs/pets/dogs/02.png", tmp_path / "inputs/pets/dogs/09.png")
    steps, log, epochs = told("whole")
    assert len(log) == 6
    assert all("cannot be read" in line and "it is left out (training)" in line for line in log[:4])
    assert log[4:] == [f"epoch {epoch} went without 4 training images that cannot be read" for epoch in (1, 2)]
    for epoch in (0, 1):
        own = [one for one in steps if one.epoch == epoch]
        assert sum(one.samples for one in own) == 18
        mean = sum(one.loss * one.samples for one in own) / 18
        assert epochs[epoch].mean_loss == pytest.approx(mean, rel=1e-12)
    streamed, _, _ = told("streamed", resident=False)
    assert streamed == steps
    rest, again, _ = told("rest", resume=[tmp_path / "whole/2"])
    assert rest == steps[2:]
    assert again[:4] == log[:4]


def test_the_features_of_a_frozen_backbone_go_without_them_too(places, pets, load, tiny_spec):
    pets(spoil=True)
    spec = tiny_spec(
        epochs=2,
        dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"},
        loader={"batch_size": 8},
        optimizer={"groups": [{"params": ["0.*", "1.*"], "freeze": True}]},
    )
    made = prepare(spec, places, CPU)
    assert isinstance(made.train, Featured)
    plain = load(made.dataset.train, "streaming", corrupt="skip", batch_size=8)
    assert sorted(made.train.corrupt) == sorted(plain.corrupt)
    for epoch in (0, 1):
        labels = [targets.tolist() for _, targets in made.train.batches(epoch)]
        assert labels == [targets.tolist() for _, targets in plain.batches(epoch)]
        assert [len(one) for one in labels] == made.train.sizes(epoch)


@pytest.mark.parametrize("corrupt", ["fail", "skip"])
def test_a_file_that_goes_while_features_are_made(places, pets, load, tiny_spec, monkeypatch, corrupt):
    images = pets().train
    monkeypatch.setattr(preparing, "tiers_of", lambda *_: dict.fromkeys(("train", "validation"), Tier("streaming", 0, "")))
    spec = tiny_spec(
        epochs=2,
        dataset={"source": "folder:pets", "image_size": 8, "corrupt": corrupt},
        loader={"batch_size": 8},
        optimizer={"groups": [{"params": ["0.*", "1.*"], "freeze": True}]},
    )
    made = prepare(spec, places, CPU)
    assert isinstance(made.train, Featured)
    gone = int(made.train.kept(0)[0])
    (places.inputs / "pets" / images.name(gone)).unlink()
    if corrupt == "fail":
        with pytest.raises(DataError, match=f"^the image {images.name(gone)} cannot be read"):
            next(made.train.batches(0))
        return
    labels = [targets.tolist() for _, targets in made.train.batches(0)]
    assert list(made.train.corrupt) == [gone]
    plain = load(images, "streaming", corrupt="skip", batch_size=8)
    assert labels == [targets.tolist() for _, targets in plain.batches(0)]


def test_where_one_rank_streams_all_look_out_for_what_it_can_no_longer_read(places, pets, tiny_spec):
    pets()
    spec = tiny_spec(dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"})

    class Second(Ranks):
        def gather(self, mine):
            return [True, mine] if isinstance(mine, bool) else [mine, mine]

    assert [prepare(spec, places, CPU, ranks).train.may_lose for ranks in (Ranks(), Second())] == [False, True]


def test_what_is_left_must_weigh_something(places, pets, tiny_spec):
    pets()
    for kind, kept in (("cats", 1), ("dogs", 12)):
        for path in sorted((places.inputs / "pets" / kind).iterdir())[kept:]:
            path.write_bytes(b"")
    spec = tiny_spec(
        dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"},
        loader={"batch_size": 12},
        loss={"name": "CrossEntropyLoss", "weight": [1.0, 0.0]},
    )
    with pytest.raises(DataError, match=r"^\d+ images cannot be read, and without them (in step 1|every validation image)"):
        prepare(spec, places, CPU)


def test_a_pause_at_an_epochs_checkpoint_comes_after_what_the_epoch_went_without(places, pets, tiny_spec, tmp_path):
    images = pets().train
    streaming = places.model_copy(update={"resident_bytes": 0, "image_cache_bytes": 0})
    spec = tiny_spec(
        epochs=2,
        dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"},
        loader={"batch_size": 8, "shuffle": False},
    )
    told = []
    for event in fit(spec, streaming, tmp_path / "job"):
        if isinstance(event, Iteration):
            (places.inputs / "pets" / images.name(20)).unlink(missing_ok=True)
            continue
        told.append(event[1])
        if event[1].kind == "checkpoint":
            break
    assert [one.samples for one in told if isinstance(one, LeftOutData)] == [[20]]
    assert "epoch 1 went without 1 training image that cannot be read" in [
        one.message for one in told if isinstance(one, LogData)
    ]


def test_a_long_list_ends_with_how_many_more(pets, load):
    loader = load(pets().train, corrupt="skip")
    loader.leave_out({index: f"the image {index} cannot be read" for index in range(22)})
    listing = Listing(loader, load(pets().validation, train=False))
    event, *lines = listing.new(since=7)
    assert event == LeftOutData(split="training", since=7, samples=list(range(22)))
    assert len(lines) == 21
    assert lines[-1].message == "and 2 more training images that cannot be read are left out"
    assert list(listing.new(since=8)) == []
    assert list(listing.again(since=3)) == [event.model_copy(update={"since": 3})], "after a rollback, without the lines"


def test_the_plan_of_a_job_that_skips_warns_of_what_it_happens_to_read(places, pets, tiny_spec):
    pets()
    for path in (places.inputs / "pets/cats").iterdir():
        path.write_bytes(b"")
    spec = tiny_spec(dataset={"source": "folder:pets", "image_size": 8, "corrupt": "skip"})
    assert any("it will be left out" in warning for warning in plan(spec, places).warnings)
