"""Where pretrained weights come from: each kind of source, found, checked and read.

Everything here reads local files. What lies elsewhere is pinned when a job is submitted and fetched for it before it trains
(`Places.pinned`, `Places.find`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.data.preprocessing import Preprocessing
from core.errors import SpecError, TransferError
from core.events import TransferStep
from core.hashes import remember, remember_finite, sha256_of, stamp_of
from core.places import PinnedWeights, Places
from core.shapes import shapes_of
from core.transfer.containers import CONTAINER, check_container
from core.transfer.entries import POINTER, Source, entries_of
from core.transfer.published import SCHEMES, Published, published
from core.transfer.statefiles import look_into, read_file, read_safetensors

_FORMS = "torchvision:NAME/WEIGHTS, timm:NAME, file:PATH, job:ID, https://HOST/PATH or hf:ORG/REPO"


def read(source: str, places: Places, *, container: str | None = None, shapes_only: bool = False) -> Source:
    """The weights that `source` names, found and checked; `container` says where in a pickle they are.

    With `shapes_only`, as a plan needs it, files are not hashed, and official weights need not be there where they may be
    fetched later. Raises SpecError at /pretrained/source; TransferError where a file is not the one that was pinned.
    """
    kind, _, rest = source.partition(":")
    if kind == "file" and rest:
        path = places.input(rest, POINTER)
        _trust(source, path, places)
        return _checked(read_file(source, path, rest, shapes_only, container), places)
    if kind in {"https", "hf"} and rest:
        pinned = _elsewhere(source, places)
        found = pinned.path or places.find(pinned)
        if found is None:
            raise SpecError.at(POINTER, f"{pinned.file} of '{source}' was not fetched yet")
        _trust(source, found, places)
        return _checked(read_file(source, found, pinned.file or found.name, shapes_only, container), places)
    if kind in SCHEMES and rest:
        return _read_published(source, places, shapes_only, container)
    if kind == "job" and rest:
        if container is not None:
            raise SpecError.at(CONTAINER, f"it has no effect: '{source}' has no containers; leave it out")
        return _read_job(source, _pinned(source, places), shapes_only)
    raise SpecError.at(POINTER, f"'{source}' is no source of weights; write {_FORMS}")


def is_here(source: str, places: Places) -> bool:
    """Whether `read` can tell shapes now. Only a file from elsewhere, that is still there alone, has to be fetched first."""
    if not source.startswith(("https:", "hf:")):
        return True
    pinned = _elsewhere(source, places)
    return (pinned.path or places.find(pinned)) is not None


def pin(source: str, places: Places) -> PinnedWeights | None:
    """The weights as a job would take them, as far as it can be told here; `path` is where a copy lies already."""
    if source.partition(":")[0] not in SCHEMES:
        return places.pinned.get(source)
    found = published(source).pinned
    return found.model_copy(update={"path": places.find(found)})


def preprocessing_of(source: str, places: Places) -> Preprocessing | None:
    """The image size and normalisation that the weights were trained with, or None where the source does not say."""
    kind = source.partition(":")[0]
    if kind in SCHEMES:
        return published(source).preprocessing
    if kind == "job":
        known = _model_card(_pinned(source, places)).get("preprocessing")
        return Preprocessing.of(known["size"], known["mean"], known["std"]) if known else None
    return None


def _read_published(source: str, places: Places, shapes_only: bool, container: str | None) -> Source:
    """As the official model names them. What a pickle holds is known once it is here."""
    official = published(source)
    check_container(official.pinned.file or "", container)
    pinned = places.pinned.get(source, official.pinned)
    path = pinned.path or places.find(pinned)
    if path is None and not (shapes_only and places.download):
        raise SpecError.at(POINTER, _not_here(official, places))
    if path is not None and shapes_only:
        look_into(path, path.name, container)
    state = shapes_of(official.build).state_dict()
    entries = entries_of(state)
    steps = () if container is None else (TransferStep(kind="container", detail=container, keys=len(entries)),)
    if path is None or shapes_only:
        return Source(source, official.library, entries, dict, classes=official.classes, steps=steps)
    here = path
    _trust(source, here, places)
    sha256 = sha256_of(here)
    if not sha256.startswith(pinned.sha256_begins):
        raise TransferError(
            f"{here.name} has the SHA-256 {sha256[:16]}…, its name says {pinned.sha256_begins}…: the file is damaged",
            "Delete the file, and fetch it again.",
        )
    loaded = Source(source, official.library, entries, lambda: official.load(here, container), sha256, official.classes, steps)
    return _checked(loaded, places)


def _not_here(official: Published, places: Places) -> str:
    name = official.pinned.local_name
    if places.download:
        return f"the file {name} was not fetched; put it into the inputs directory, or submit the job again: a worker fetches it"
    return (
        f"the file {name} is not here, and downloads are off; put it into the inputs directory (or its folder weights/), "
        "or let the operator set GRAFT_DOWNLOAD=true"
    )


def _elsewhere(source: str, places: Places) -> PinnedWeights:
    if source not in places.pinned:
        raise SpecError.at(POINTER, f"'{source}' is fetched for jobs alone; here, fetch it yourself and write file:PATH")
    return places.pinned[source]


def _trust(source: str, path: Path, places: Places) -> None:
    """Spare the hash of a file that is still as it was when it was pinned; and what was found out then, for its hash."""
    pinned = places.pinned.get(source)
    if pinned is not None and pinned.sha256 is not None:
        if pinned.stamp is not None:
            remember(path, pinned.sha256, pinned.stamp)
        if pinned.finite:
            remember_finite(pinned.sha256)


def is_as_pinned(source: Source, pinned: PinnedWeights) -> bool:
    """Whether the file is one whose hash is known, and has not changed since."""
    return source.path is not None and pinned.stamp is not None and stamp_of(source.path) == pinned.stamp


def _checked(source: Source, places: Places) -> Source:
    """The source, if it is the one that was pinned. Raises TransferError."""
    pinned = places.pinned.get(source.name)
    expected = None if pinned is None else pinned.sha256
    if expected is not None and source.sha256 is not None and source.sha256 != expected:
        raise TransferError(
            f"'{source.name}' has changed since this job was submitted: its SHA-256 is {source.sha256[:16]}…, "
            f"it was {expected[:16]}…",
            "Put the file back, or submit the job again: it is then pinned to the file as it is now.",
        )
    return source


def _pinned(source: str, places: Places) -> PinnedWeights:
    if source not in places.pinned:
        raise SpecError.at(POINTER, f"'{source}' has no weights here; name a job that has written a checkpoint")
    return places.pinned[source]


def _read_job(source: str, pinned: PinnedWeights, shapes_only: bool) -> Source:
    path = _folder(pinned) / "model.safetensors" if pinned.path is None or pinned.path.is_dir() else pinned.path
    if not path.is_file():
        raise SpecError.at(POINTER, f"the weights of '{source}' are gone; name another job, or train it again")
    if not shapes_only and sha256_of(path) != pinned.sha256:
        raise TransferError(f"the weights of '{source}' have changed since this job was submitted")
    card = _model_card(pinned)
    classes, model = card.get("classes"), card.get("architecture", {}).get("name")
    found = read_safetensors(source, path, path.name, pinned.sha256, tuple(classes) if classes else None)
    return replace(found, model=model)


def _model_card(pinned: PinnedWeights) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((_folder(pinned) / "model.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card


def _folder(pinned: PinnedWeights) -> Path:
    path = pinned.path or Path()
    return path if path.is_dir() else path.parent
