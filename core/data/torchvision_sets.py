"""How each labelled image dataset of torchvision is built, and where its labels, files and classes lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.spec import Task

Keywords = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One way to build a dataset. An attribute path such as `_samples.1` is the second column of `_samples`."""

    needs: str
    """What must lie below the root; "" where nothing does."""
    labels: str | Callable[[Any], Any]
    train: Keywords
    validation: Keywords | None = None
    """None: it has no split of its own whose classes are those of the training set."""
    classes: str | tuple[str, ...] = "classes"
    """The attribute with their names, or the names."""
    files: str | Callable[[Any], list[str]] | None = None
    pixels: str | None = None
    layout: str = "NHW"
    """Of `pixels`."""
    sort_classes: bool = False
    """Its classes come in whatever order the file system lists them; ours is by name."""
    task: Task = "multiclass"


def _flags() -> tuple[Keywords, Keywords]:
    return {"train": True}, {"train": False}


def _splits(train: str = "train", validation: str = "test", **more: Any) -> tuple[Keywords, Keywords]:
    return {"split": train, **more}, {"split": validation, **more}


def _idx(name: str, labels: str = "targets", **more: Any) -> list[Recipe]:
    return [Recipe(f"{name}/raw", labels, {"train": True, **more}, {"train": False, **more}, pixels="data")]


def _files(
    needs: str, labels: str, files: str, train: Keywords, validation: Keywords | None = None, *, classes: str = "classes"
) -> Recipe:
    return Recipe(needs, labels, train, validation, classes=classes, files=files)


def _caltech(pattern: str, folder: str) -> Callable[[Any], list[str]]:
    def files(dataset: Any) -> list[str]:
        rows = zip(dataset.y, dataset.index, strict=True)
        return [
            str(Path(dataset.root, folder, dataset.categories[y], pattern.format(number=y + 1, index=index))) for y, index in rows
        ]

    return files


def _omniglot_files(dataset: Any) -> list[str]:
    rows = dataset._flat_character_images  # noqa: SLF001  (torchvision has no public name for it)
    return [str(Path(dataset.target_folder, dataset._characters[character], image)) for image, character in rows]  # noqa: SLF001


def _inaturalist_files(dataset: Any) -> list[str]:
    return [str(Path(dataset.root, dataset.all_categories[category], name)) for category, name in dataset.index]


def _celeba_files(dataset: Any) -> list[str]:
    return [str(Path(dataset.root, dataset.base_folder, "img_align_celeba", name)) for name in dataset.filename]


def _celeba(labels: str, classes: str | tuple[str, ...], task: Task) -> Recipe:
    return Recipe("celeba", labels, *_splits(validation="valid"), classes=classes, files=_celeba_files, task=task)


def _pcam_labels(dataset: Any) -> Any:
    name = dataset._FILES[dataset._split]["targets"][0]  # noqa: SLF001  (one read; item by item, it opens the file for each label)
    with dataset.h5py.File(dataset._base_folder / name) as file:  # noqa: SLF001
        return file["y"][:, 0, 0, 0]


def _drawn_labels(dataset: Any) -> list[int]:
    return [dataset[index][1] for index in range(len(dataset))]


def _inaturalist(train: str, validation: str | None) -> Recipe:
    held = None if validation is None else {"version": validation}
    return Recipe(train, "index.0", {"version": train}, held, classes="all_categories", files=_inaturalist_files)


_LANDMARKS = tuple(f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy")

# Validation is the split called so where there is one, else the test split. Several recipes: the first whose files are there,
# of the task that the spec names, else of the first one's.
RECIPES: dict[str, list[Recipe]] = {
    "CIFAR10": [Recipe("cifar-10-batches-py", "targets", *_flags(), pixels="data", layout="NHWC")],
    "CIFAR100": [Recipe("cifar-100-python", "targets", *_flags(), pixels="data", layout="NHWC")],
    "CLEVRClassification": [_files("clevr", "_labels", "_image_files", *_splits(validation="val"), classes="")],
    "Caltech101": [
        Recipe(
            "caltech101/101_ObjectCategories", "y", {}, classes="categories",
            files=_caltech("image_{index:04d}.jpg", "101_ObjectCategories"),
        )
    ],
    "Caltech256": [
        Recipe(
            "caltech256/256_ObjectCategories", "y", {}, classes="categories",
            files=_caltech("{number:03d}_{index:04d}.jpg", "256_ObjectCategories"),
        )
    ],
    # Its boxes are those of the pictures before they were aligned; its splits share no person.
    "CelebA": [
        _celeba("attr", "attr_names", "multilabel"),
        _celeba("landmarks_align", _LANDMARKS, "regression"),
    ],
    "Country211": [_files("country211", "targets", "samples.0", *_splits(validation="valid"))],
    "DTD": [_files("dtd/dtd", "_labels", "_image_files", *_splits(validation="val"))],
    # The authors advise `balanced`: the other splits repeat classes, or differ in their frequencies by far.
    "EMNIST": _idx("EMNIST", split="balanced"),
    "EuroSAT": [_files("eurosat/2750", "targets", "samples.0", {})],
    "FER2013": [Recipe("fer2013", "_samples.1", *_splits(), classes="", pixels="_samples.0")],
    "FGVCAircraft": [_files("fgvc-aircraft-2013b", "_labels", "_image_files", *_splits(validation="val"))],
    # Noise, to try things on. Its own size is 224; at 32 its labels, which come after each image's draw, are there at once.
    "FakeData": [
        Recipe(
            "", _drawn_labels, {"image_size": (3, 32, 32)}, {"image_size": (3, 32, 32), "size": 200, "random_offset": 1000},
            classes="",
        )
    ],
    "FashionMNIST": _idx("FashionMNIST"),
    "Flowers102": [_files("flowers-102", "_labels", "_image_files", *_splits(validation="val"))],
    "Food101": [_files("food-101", "_labels", "_image_files", *_splits())],
    "GTSRB": [_files("gtsrb", "_samples.1", "_samples.0", *_splits(), classes="")],
    "INaturalist": [
        _inaturalist("2021_train", "2021_valid"),
        _inaturalist("2021_train_mini", "2021_valid"),
        *(_inaturalist(version, None) for version in ("2019", "2018", "2017")),
    ],
    "ImageNet": [_files("meta.bin", "targets", "samples.0", *_splits(validation="val"))],
    "Imagenette": [
        _files(folder, "_samples.1", "_samples.0", *_splits(validation="val", size=size))
        for folder, size in (("imagenette2", "full"), ("imagenette2-320", "320px"), ("imagenette2-160", "160px"))
    ],
    "KMNIST": _idx("KMNIST"),
    # Its train and test splits, and Omniglot's, share no class: one part is taken, and held out from.
    "LFWPeople": [_files("lfw-py", "targets", "data", {"split": "10fold"}, classes="class_to_idx")],
    "MNIST": _idx("MNIST"),
    "Omniglot": [
        Recipe(
            "omniglot-py/images_background", "_flat_character_images.1", {}, classes="_characters",
            files=_omniglot_files, sort_classes=True,
        )
    ],
    "OxfordIIITPet": [_files("oxford-iiit-pet", "_labels", "_images", *_splits("trainval"))],
    "PCAM": [Recipe("pcam", _pcam_labels, *_splits(validation="val"), classes="")],
    "Places365": [
        _files(folder, "targets", "imgs.0", *_splits("train-standard", "val", small=small))
        for folder, small in (("data_256_standard", True), ("data_large_standard", False))
    ],
    "QMNIST": _idx("QMNIST", labels="targets.0"),
    "RenderedSST2": [_files("rendered-sst2", "_samples.1", "_samples.0", *_splits(validation="val"))],
    "SEMEION": [Recipe("semeion.data", "labels", {}, classes="", pixels="data")],
    "STL10": [Recipe("stl10_binary", "labels", *_splits(), pixels="data", layout="NCHW")],
    "SUN397": [_files("SUN397", "_labels", "_image_files", {})],
    "SVHN": [Recipe("train_32x32.mat", "labels", *_splits(), classes="", pixels="data", layout="NCHW")],
    "StanfordCars": [_files("stanford_cars", "_samples.1", "_samples.0", *_splits())],
    "USPS": [Recipe("usps.bz2", "targets", *_flags(), classes="", pixels="data")],
}  # fmt: skip

REFUSED = {
    "Flickr30k": "it has captions, not classes",
    "Flickr8k": "it has captions, not classes",
    "LFWPairs": "it has pairs of images, not classes",
    "LSUN": "torchvision's reader of it unpickles from the working directory; export it to class folders and use folder:PATH",
    "SBU": "it has captions, not classes",
}
"""Sets that torchvision lists beside those of classification, and why they cannot train here."""

IDX_FILES = {
    "EMNIST": ("emnist-balanced-train", "emnist-balanced-test"),
    "FashionMNIST": ("train", "t10k"),
    "KMNIST": ("train", "t10k"),
    "MNIST": ("train", "t10k"),
}
"""Prefixes of the idx files of training and validation, for sets that also come as these four files alone."""


def folder_names(name: str) -> list[str]:
    """How people call the folder of a dataset: `FashionMNIST`, `fashion-mnist`, `fashionmnist`."""
    dashed = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return list(dict.fromkeys([name, dashed, name.lower()]))


def column(dataset: Any, path: str) -> Any:
    """The attribute at `path`, or one column of it: `targets`, `_samples.1`."""
    name, _, index = path.partition(".")
    values = getattr(dataset, name)
    if not index:
        return values
    return values[:, int(index)] if hasattr(values, "ndim") else [row[int(index)] for row in values]


def class_names(dataset: Any, recipe: Recipe) -> tuple[str, ...]:
    """The names of the classes, by label; empty where torchvision has none."""
    if isinstance(recipe.classes, tuple):
        return recipe.classes
    names = getattr(dataset, recipe.classes, ()) if recipe.classes else ()
    named = tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in _listed(names))
    return named[:-1] if named and not named[-1] else named  # CelebA's header ends in a blank


def _listed(names: Any) -> Iterator[Any]:
    return iter(names.tolist() if isinstance(names, np.ndarray) else names)
