"""Augmentation: the same for a sample wherever it is read, another for each sample and epoch, and never of validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.augmentation import augment, presets, transforms
from core.data.batches import Loader, make_loader
from core.data.images import ArrayImages
from core.data.preprocessing import Preprocessing
from core.errors import SpecError
from core.places import Places
from core.plan import plan
from core.prepare import prepare
from core.spec import Augmentation, JobSpec, LoaderSpec

CPU = torch.device("cpu")
AS_IS = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
EVERYTHING = [
    {"name": "RandomResizedCrop", "scale": [0.3, 1.0]},
    {"name": "RandomCrop", "padding": 2, "padding_mode": "reflect"},
    {"name": "RandomHorizontalFlip"},
    {"name": "RandomAffine", "degrees": 20, "translate": [0.1, 0.1], "interpolation": "bilinear", "fill": 0.5},
    {"name": "RandomRotation", "degrees": 15},
    {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    {"name": "GaussianBlur", "kernel_size": 3},
    {"name": "RandomAdjustSharpness", "sharpness_factor": 2},
    {"name": "RandomEqualize", "p": 0.2},
    {"name": "TrivialAugmentWide"},
    {"name": "RandAugment"},
    {"name": "AugMix"},
    {"name": "RandomErasing"},
    {"name": "GaussianNoise", "sigma": 0.05},
]  # fmt: skip
Refused = Callable[..., dict[str, str]]


def operations(*given: dict[str, Any]) -> list[Augmentation]:
    return [Augmentation.model_validate(one) for one in given]


def build(given: Any, *, size: int = 16, channels: int = 3, own: Any = None, seed: int = 0) -> Any:
    listed = presets.listed(given, size, channels, (0.5, 0.4, 0.3))
    return augment.build(listed, size=size, channels=channels, own=own, seed=seed)


@pytest.fixture
def load(places: Places) -> Callable[..., Loader]:
    """Thirteen noisy images, numbered by their labels, in batches; the first two are the same picture."""
    pixels = torch.randint(0, 256, (13, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[1] = pixels[0]
    images = ArrayImages(pixels, torch.arange(13), "train")

    def make(given: Any, *, seed: int = 0, resident: bool = True, train: bool = True, **spec: Any) -> Loader:
        return make_loader(
            images, LoaderSpec(**spec), AS_IS, channels=3, seed=seed, train=train, device=CPU,
            places=places if resident else places.model_copy(update={"resident_bytes": 0}), augment=build(given, seed=seed),
        )  # fmt: skip

    return make


def seen(batches: Any) -> dict[int, Tensor]:
    """Each sample's image, by its number."""
    return {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}


# --- a function of (seed, epoch, sample) -------------------------------------------------------------------------------------


def test_an_image_is_changed_alike_in_any_batch_on_any_rank_and_after_any_resume(load: Callable[..., Loader]) -> None:
    whole = load(operations(*EVERYTHING), batch_size=13)
    expected = seen(whole.batches(3))
    assert len(expected) == 13
    small = load(operations(*EVERYTHING), batch_size=4, resident=False)  # 4, 4, 5, in files
    parts = [
        seen(small.batches(3)),
        seen(small.batches(3, 2)),
        *(seen(small.batches(3, rank=rank, ranks=3)) for rank in range(3)),
        *(seen(whole.batches(3, rank=rank, ranks=13)) for rank in range(13)),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        parts.append(seen(whole.batches(3)))
    for part in parts:
        assert part
        for number, image in part.items():
            assert torch.equal(image, expected[number]), "bit for bit"


def test_each_image_in_each_epoch_and_with_each_seed_is_changed_in_its_own_way(load: Callable[..., Loader]) -> None:
    for given in (operations(*EVERYTHING), "light", "strong"):
        first = seen(load(given, batch_size=13).batches(0))
        assert not torch.equal(first[0], first[1]), "the same picture twice"
        assert not torch.equal(first[0], seen(load(given, batch_size=13).batches(1))[0])
        assert not torch.equal(first[0], seen(load(given, batch_size=13, seed=1).batches(0))[0])


def test_nothing_is_taken_from_the_global_generators(load: Callable[..., Loader]) -> None:
    state = torch.get_rng_state()
    seen(load(operations(*EVERYTHING)).batches(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_without_a_sample_stays_one(load: Callable[..., Loader]) -> None:
    ((images, labels),) = load("strong", batch_size=13).batches(0, rank=0, ranks=14)
    assert (images.shape, len(labels)) == ((0, 3, 16, 16), 0)


def test_validation_and_what_is_held_for_it_stay_as_they_are(tiny_spec: Callable[..., JobSpec], places: Places) -> None:
    plain = prepare(tiny_spec(), places, CPU)
    job = prepare(tiny_spec(dataset={"source": "sklearn:digits", "augment": "strong"}), places, CPU)
    assert torch.equal(next(job.validation.batches(0))[0], next(plain.validation.batches(0))[0])
    changed, its = next(job.train.batches(0)), next(plain.train.batches(0))
    assert torch.equal(changed[1], its[1]), "the order is the same"
    assert not torch.equal(changed[0], its[0])


# --- presets, and what the plan says -----------------------------------------------------------------------------------------


def test_the_plan_lists_what_a_preset_is_made_of_and_that_list_makes_the_same(
    tiny_spec: Callable[..., JobSpec], places: Places
) -> None:
    spec = tiny_spec(dataset={"source": "sklearn:digits", "augment": "light"})
    planned = plan(spec, places)
    names = [one.name for one in planned.spec.dataset.augment]
    assert names == ["RandomResizedCrop", "ColorJitter"]
    again = planned.spec.model_dump(mode="json")
    assert plan(JobSpec.model_validate(again), places).spec == planned.spec
    first = [next(prepare(one, places, CPU).train.batches(0))[0] for one in (spec, JobSpec.model_validate(again))]
    assert torch.equal(*first)


def test_of_grey_images_no_colour_is_changed_and_none_is_mirrored() -> None:
    colour = {one.name: one.keywords for one in presets.listed("strong", 8, 3, (0.1, 0.2, 0.6))}
    grey = {one.name: one.keywords for one in presets.listed("strong", 8, 1, (0.1, 0.2, 0.6))}
    assert set(colour) - set(grey) == {"RandomHorizontalFlip"}
    assert set(colour["ColorJitter"]) - set(grey["ColorJitter"]) == {"saturation"}
    assert (colour["RandomErasing"]["value"], grey["RandomErasing"]["value"]) == ([0.1, 0.2, 0.6], [pytest.approx(0.3)])
    assert "RandomHorizontalFlip" not in {one.name for one in presets.listed("light", 8, 3, (0, 0, 0))}


def test_the_notes_tell_of_mirrors_and_of_what_is_slow() -> None:
    assert "mirrors" in next(augment.notes("strong", build("strong")))
    assert list(augment.notes("light", build("light"))) == list(augment.notes("strong", build("strong", channels=1))) == []
    given = operations(*EVERYTHING)
    (note,) = augment.notes(given, build(given))
    assert note.endswith(": AugMix, GaussianNoise")


@pytest.mark.parametrize(
    ("given", "own", "held"),
    [
        ("light", None, 256), ("strong", None, 256), ("light", (224, 224), 224), ("light", (240, 300), 240),
        ("light", (28, 28), 224), ([{"name": "RandomCrop"}], None, 256), ([{"name": "RandomCrop", "padding": 9}], None, 224),
        ([{"name": "RandomHorizontalFlip"}], None, 224),
    ],
)  # fmt: skip
def test_images_that_are_cropped_are_held_larger_but_never_enlarged_for_it(given: Any, own: Any, held: int) -> None:
    made = build(given if isinstance(given, str) else operations(*given), size=224, own=own)
    assert (made.held, made.size) == (held, 224)


def test_the_memory_of_a_plan_counts_images_as_they_are_held(
    tiny_spec: Callable[..., JobSpec], places: Places, draw: Callable[..., Any]
) -> None:
    draw({"pets/train/a": 4, "pets/train/b": 4, "pets/val/a": 1, "pets/val/b": 1})
    dataset = {"source": "folder:pets", "image_size": 14, "augment": "light"}
    model = {"name": "torchvision:squeezenet1_1"}
    planned = plan(tiny_spec(dataset={**dataset, "image_size": 28}, model=model), places)
    assert planned.memory.data == 3 * (8 * 32**2 + 2 * 28**2)
    job = prepare(tiny_spec(dataset={**dataset, "image_size": 28}, model=model), places, CPU)
    assert job.train.bytes == 3 * 8 * 32**2
    assert next(job.train.batches(0))[0].shape == (8, 3, 28, 28)


# --- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "pointer", "message"),
    [
        ({"name": "RandomHorizontlFlip"}, "/name", "Did you mean 'RandomHorizontalFlip'?"),
        ({"name": "RandomHorizontalFlip", "prob": 0.3}, "/prob", "unknown keyword of RandomHorizontalFlip. Known: p."),
        ({"name": "RandomHorizontalFlip", "p": "often"}, "/p", "expects float"),
        ({"name": "RandomHorizontalFlip", "p": 1.5}, "", "interval [0.0, 1.0]"),
        ({"name": "RandomErasing", "inplace": True}, "/inplace", "leave it out"),
        ({"name": "RandomErasing", "scale": [0.5, 0.1]}, "", "(min, max)"),
        ({"name": "RandomErasing", "value": 255}, "/value", "pixels are from 0 to 1"),
        ({"name": "RandomAffine", "degrees": 5, "fill": [0, 300, 0]}, "/fill", "pixels are from 0 to 1"),
        ({"name": "RandomAffine"}, "/degrees", "RandomAffine needs this keyword"),
        ({"name": "RandomRotation", "degrees": 5, "expand": True}, "/expand", "a size of its own"),
        ({"name": "RandomSolarize", "threshold": 128}, "", "pixels are from 0 to 1"),
        ({"name": "AutoAugment", "policy": "cifar"}, "/policy", "cifar"),
        ({"name": "RandomCrop", "size": 99}, "", "larger than the image"),
        ({"name": "RandomCrop", "size": 12}, "", "after it images are 12 x 12 px, but the model takes 16 x 16"),
        ({"name": "Pad", "padding": 1}, "", "after it images are 18 x 18 px"),
        *(
            ({"name": name}, "/name", reason)
            for name, reason in {
                "FiveCrop": "several images", "Lambda": "a function", "Compose": "other transforms", "ToPILImage": "types",
                "RandomIoUCrop": "boxes", "MixUp": "training.mixup", "Normalize": "afterwards", "RandomZoomOut": "a size of its",
            }.items()
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_where_it_stands(operation: dict[str, Any], pointer: str, message: str) -> None:
    with pytest.raises(SpecError) as refusal:
        build(operations({"name": "RandomHorizontalFlip"}, operation))
    ((fault),) = refusal.value.faults
    assert fault.pointer == f"/dataset/augment/1{pointer}"
    assert message in fault.message


def test_every_operation_of_torchvision_is_either_refused_or_works() -> None:
    needed = {
        "GaussianBlur": {"kernel_size": 3}, "Pad": {"padding": 0}, "RandomAdjustSharpness": {"sharpness_factor": 2},
        "RandomAffine": {"degrees": 10}, "RandomPosterize": {"bits": 3}, "RandomRotation": {"degrees": 10},
        "RandomSolarize": {"threshold": 0.5}, "ElasticTransform": {"sigma": 1.0},
    }  # fmt: skip
    served = [name for name in transforms.names() if name not in transforms.REFUSED]
    assert len(served) > 25
    assert set(transforms.REFUSED) < set(transforms.names())
    for name in served:
        for channels in (1, 3):
            made = build(operations({"name": name, **needed.get(name, {})}), channels=channels)
            pixels = torch.full((2, channels, made.held, made.held), 9, dtype=torch.uint8)
            assert made(pixels, 0, torch.arange(2)).shape[2:] == (16, 16)
        assert set(needed.get(name, {})) <= set(transforms.keywords_of(name))


def test_a_plan_names_all_faults_of_a_list_beside_the_others(tiny_spec: Callable[..., JobSpec], places: Places) -> None:
    given = [{"name": "Blur"}, {"name": "ColorJitter", "hues": 1}]
    spec = tiny_spec(dataset={"source": "sklearn:digits", "augment": given}, loss={"name": "Crossentropy"})
    with pytest.raises(SpecError) as refusal:
        plan(spec, places)
    pointers = {fault.pointer for fault in refusal.value.faults}
    assert pointers == {"/dataset/augment/0/name", "/dataset/augment/1/hues", "/loss/name"}
