"""Open a labelled dataset of torchvision, found below the inputs root or downloaded."""

from __future__ import annotations

import fcntl
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from core.data import idx
from core.data.images import POINTER, ArrayImages, DatasetImages, FileImages, Images, Opened
from core.data.readings import TASK
from core.data.torchvision_sets import IDX_FILES, RECIPES, REFUSED, Recipe, class_names, column, folder_names
from core.errors import SpecError, did_you_mean
from core.places import Places
from core.spec import DatasetSpec


def open_torchvision(name: str, places: Places, spec: DatasetSpec) -> Opened:
    """The dataset `name`: flat idx files, else torchvision's own layout, else a download where that is allowed."""
    if name in REFUSED:
        raise SpecError.at(POINTER, f"torchvision's {name} has no labels to train on: {REFUSED[name]}")
    if name not in RECIPES:
        raise SpecError.at(POINTER, f"torchvision has no labelled dataset '{name}'.{did_you_mean(name, RECIPES)}")
    recipes = [recipe for recipe in RECIPES[name] if recipe.task == (spec.task or RECIPES[name][0].task)]
    if not recipes:
        known = " or ".join(dict.fromkeys(recipe.task for recipe in RECIPES[name]))
        raise SpecError.at(TASK, f"the targets of torchvision's {name} are {known}, not {spec.task}")
    failure: SpecError | None = None
    for root in (places.inputs, *(places.inputs / folder for folder in folder_names(name)), places.cache / "datasets"):
        if name in IDX_FILES and idx.find(root, f"{IDX_FILES[name][0]}-images-idx3-ubyte"):
            return _open_idx(name, root)
        for recipe in recipes:
            if recipe.needs and not (root / recipe.needs).exists():
                continue
            try:
                return _open(name, recipe, root, places, download=False)
            except SpecError as error:  # inputs/dtd may be the dtd that torchvision looks for, or the folder it lies in
                failure = failure or error
    if failure:
        raise failure
    return _open_downloaded(name, recipes, places)


def _open_idx(name: str, root: Path) -> Opened:
    """The four idx files of MNIST and its kin, as packages and mirrors lay them: plain or `.gz`, in one folder."""
    train, validation = (_read_idx(root, prefix) for prefix in IDX_FILES[name])
    kind = getattr(torchvision.datasets, name)
    classes = kind.classes_split_dict["balanced"] if name == "EMNIST" else kind.classes
    return Opened(classes, train, validation, 1)


def _read_idx(root: Path, prefix: str) -> ArrayImages:
    tensors = []
    for name, dimensions in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        path = idx.find(root, name)
        if path is None:
            raise SpecError.at(POINTER, f"{name} (or {name}.gz) is not beside the other idx files")
        try:
            tensors.append(idx.read(path, dimensions))
        except idx.IdxError as error:
            raise SpecError.at(POINTER, str(error)) from None
    images, labels = tensors
    if len(images) != len(labels):
        raise SpecError.at(POINTER, f"{prefix}: {len(images)} images, but {len(labels)} labels")
    return ArrayImages(images[:, None], labels.to(torch.int64), "train" if prefix.endswith("train") else "validation")


def _open_downloaded(name: str, recipes: Sequence[Recipe], places: Places) -> Opened:
    kind = getattr(torchvision.datasets, name)
    wanted = " or ".join(f"'{each.needs}'" for each in recipes)
    missing = f"torchvision's {name} is not there: {wanted} is not in the inputs directory, nor in a folder {name} of it"
    if not places.download:
        raise SpecError.at(POINTER, f"{missing}, and downloads are not allowed here (GRAFT_DOWNLOAD)")
    if "download" not in inspect.signature(kind).parameters:
        raise SpecError.at(POINTER, f"{missing}, and torchvision cannot download it")
    root = places.cache / "datasets"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:  # two plans of one new dataset: the second waits, then finds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _open(name, recipes[0], root, places, download=True)


def _open(name: str, recipe: Recipe, root: Path, places: Places, *, download: bool) -> Opened:
    kind = getattr(torchvision.datasets, name)
    # Always said where it can be said: SEMEION downloads by default.
    more = {"download": download} if "download" in inspect.signature(kind).parameters else {}
    build = partial(kind, *(() if name == "FakeData" else (root,)), **more)
    try:
        return _build(build, recipe, root)
    except SpecError:
        raise
    except Exception as error:  # torchvision's readers raise anything on damaged files; all mean this
        # Whoever submits a job knows the inputs directory, not where the server has it.
        reason = str(error).replace(str(places.inputs), "inputs").replace(str(places.cache), "cache")
        raise SpecError.at(POINTER, f"torchvision cannot open its {name}: {type(error).__name__}: {reason}") from error


def _build(build: Callable[..., Any], recipe: Recipe, root: Path) -> Opened:
    dataset = build(**recipe.train)
    labels = _labels(dataset, recipe)
    if labels is None:
        raise SpecError.at(POINTER, "its training split has no labels")
    classes = class_names(dataset, recipe)
    if not classes:  # torchvision names none: the labels are the names
        classes = tuple(str(label) for label in sorted(set(labels.tolist())))
        labels = _as_indices(labels, classes)
    elif recipe.sort_classes:
        by_name = torch.tensor([sorted(classes).index(name) for name in classes])
        labels, classes = by_name[labels], tuple(sorted(classes))
    train = _images(dataset, recipe, labels, root=root, split="train")
    channels = train.pixels.shape[1] if isinstance(train, ArrayImages) else 3
    return Opened(classes, train, _held_out(build, recipe, root, classes), channels, task=recipe.task)


def _held_out(build: Callable[..., Any], recipe: Recipe, root: Path, classes: tuple[str, ...]) -> Images | None:
    """The validation split; None where there is none, or where it came without labels (FER2013's test file)."""
    if recipe.validation is None:
        return None
    if "version" in recipe.validation and not (root / recipe.validation["version"]).exists():
        return None  # INaturalist: each version is a folder, and the one for validation may not be there
    dataset = build(**recipe.validation)
    labels = _labels(dataset, recipe)
    if labels is None:
        return None
    if not class_names(dataset, recipe):
        labels = _as_indices(labels, classes)
    return _images(dataset, recipe, labels, root=root, split="validation")


def _images(dataset: Any, recipe: Recipe, labels: Tensor, *, root: Path, split: str) -> Images:
    if recipe.pixels:
        return ArrayImages(_pixels(column(dataset, recipe.pixels), recipe.layout), labels, split)
    if recipe.files is None:
        return DatasetImages(dataset, labels, root, [f"{split}[{index}]" for index in range(len(labels))], 3)
    paths = recipe.files(dataset) if callable(recipe.files) else column(dataset, recipe.files)
    # Some readers list folders in whatever order the file system has; ours is by name, everywhere.
    names = [str(Path(path).relative_to(root)) for path in paths]
    order = sorted(range(len(names)), key=names.__getitem__)
    return FileImages(root, [names[index] for index in order], labels[torch.tensor(order, dtype=torch.int64)])


def _labels(dataset: Any, recipe: Recipe) -> Tensor | None:
    """int64 [N] of classes, else float32 [N, K]; None where the files came without."""
    values = recipe.labels(dataset) if callable(recipe.labels) else column(dataset, recipe.labels)
    if isinstance(values, list) and any(value is None for value in values):
        return None
    return torch.as_tensor(np.asarray(values).astype(np.int64 if recipe.task == "multiclass" else np.float32))


def _as_indices(labels: Tensor, classes: tuple[str, ...]) -> Tensor:
    """Labels as class indices, where their own values are the names of the classes."""
    index = {int(value): position for position, value in enumerate(classes)}
    strange = sorted(set(labels.tolist()) - set(index))
    if strange:
        raise SpecError.at(POINTER, f"its validation split has labels that its training split has not: {strange[:5]}")
    return torch.tensor([index[label] for label in labels.tolist()], dtype=torch.int64)


def _pixels(values: Any, layout: str) -> Tensor:
    """Any of torchvision's array layouts as uint8 [N, C, H, W]."""
    if isinstance(values, list):
        values = torch.stack(values)
    tensor = torch.as_tensor(values)
    if layout == "NHW":
        return tensor[:, None].contiguous()
    return (tensor.permute(0, 3, 1, 2) if layout == "NHWC" else tensor).contiguous()
