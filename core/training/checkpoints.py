"""Checkpoints: one directory each, named by its step, whole or not there at all.

    STEP/model.safetensors   the weights and buffers, under the model's own names; their running average, where the job keeps one
    STEP/model.json          what one needs to use them: architecture, classes, preprocessing, figures, hashes
    STEP/state.safetensors   the optimizer's state by parameter name, the random generators, and beside an average what trains
    STEP/state.json          how far the job was, to the batch, and the hash of every other file

A checkpoint is written beside its place, synced, and renamed into it. `load` verifies every hash: what is damaged is not loaded.
A job that went back writes STEP.1 from there on, then STEP.2: what a log tells of is not replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core import randomness
from core.errors import DiskFullError, is_no_room
from core.events import Figure
from core.optimizer.groups import load_optimizer_state, optimizer_state
from core.training.card import model_card
from core.training.checkpoint_names import name_of
from core.training.divergence import Watched
from core.training.progress import Progress, Tally
from core.transfer.tensorfile import Written, sha256_of, write, write_tensors

if TYPE_CHECKING:
    from core.prepare import Prepared
    from core.training.recipe import Recipe

FORMAT = 3
_PARTIAL = ".partial"

Generators = tuple[dict[str, Tensor], dict[str, Any]]
"""The random generators of a process, as `core.randomness.capture` gives them."""


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, or not one; the message says in what."""


class Saved(NamedTuple):
    """A checkpoint as the log tells of it; `sha256` is that of the weights."""

    path: str
    sha256: str
    bytes: int


def save(
    directory: Path, job: Prepared, progress: Progress, figures: Mapping[str, Figure], publish: Callable[[], None] = lambda: None,
    *, generators: Sequence[Generators] = (), returns: int = 0,
) -> Saved:  # fmt: skip
    """Write the checkpoint `directory`/STEP. `publish` is called once it is on disk, right before it is renamed into its place.

    `generators` are the random generators of each rank; without them, those of this process. `returns` counts how often this
    process went back. Raises DiskFullError where there is no room. Whatever is raised, nothing of the checkpoint remains.
    """
    place = directory / name_of(progress.step, returns)
    with _partial(place) as folder:
        tensors, values = _state(job, generators or [randomness.capture(device_of(job.model))])
        state = write_tensors(folder / "state.safetensors", tensors, {})
        weights = write_tensors(folder / "model.safetensors", job.model.state_dict(), {"format": "pt"})
        model = _write_json(folder / "model.json", model_card(job, progress, figures, weights.sha256, FORMAT))
        files = {"model.safetensors": weights.sha256, "model.json": model.sha256, "state.safetensors": state.sha256}
        content = {"format": FORMAT, "progress": asdict(progress), "sha256": files, "values": values}
        last = _write_json(folder / "state.json", {**content, "check": _check(content)})
        _sync(folder)
        publish()
        _rename(folder, place)
    size = sum(written.bytes for written in (weights, model, state, last))
    return Saved(path=place.name, sha256=weights.sha256, bytes=size)


def load(place: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The weights, the state's tensors, and state.json of a checkpoint. Raises CheckpointError where it is not whole."""
    try:
        content = json.loads((place / "state.json").read_bytes())
        if content.pop("check") != _check(content):
            raise CheckpointError(f"{place.name}/state.json is damaged: its content is not what it was written with")
        for name, sha256 in content["sha256"].items():
            if sha256_of(place / name) != sha256:
                raise CheckpointError(f"{place.name}/{name} is damaged: its SHA-256 is not the one in state.json")
        if content["format"] != FORMAT:
            raise CheckpointError(f"{place.name} has format {content['format']}; this version reads {FORMAT}")
        weights = safetensors.torch.load_file(place / "model.safetensors")
        return weights, safetensors.torch.load_file(place / "state.safetensors"), content
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{place.name} is no whole checkpoint: {type(error).__name__}: {error}") from None


class Resumed(NamedTuple):
    """How far a job is that goes on, and what is wrong with each checkpoint that was passed over for that."""

    progress: Progress
    passed_over: list[CheckpointError]


def resume(
    candidates: Sequence[Path], model: nn.Module, optimizer: Optimizer, recipe: Recipe | None = None, rank: int = 0
) -> Resumed:
    """Continue from the first sound one of `candidates`: weights, buffers, optimizer, recipe, random generators.

    Where none is sound, model and optimizer stay as they are, for a job that begins anew. Any number of ranks may go on where
    another number stopped; a rank that was not there draws new numbers.
    """
    damaged: list[CheckpointError] = []
    for place in candidates:
        try:
            weights, tensors, content = load(place)
        except CheckpointError as error:
            damaged.append(error)
            continue
        model.load_state_dict(weights)
        progress = _progress(content["progress"])
        generators, trained = _restore(optimizer, tensors, content["values"])
        if recipe is not None:
            recipe.restore(trained, content["values"]["recipe"])
        if rank < len(generators):
            randomness.restore(*generators[rank], device_of(model))
        else:
            randomness.reseed(torch.initial_seed(), progress.step)
        return Resumed(progress, damaged)
    return Resumed(Progress(), damaged)


def _progress(values: Mapping[str, Any]) -> Progress:
    history, tally, watched = tuple(values.get("history", ())), Tally(**values["tally"]), Watched.of(values.get("watched", {}))
    return Progress(**{**values, "history": history, "tally": tally, "watched": watched})


def told(place: Path) -> tuple[int, dict[str, Figure]] | None:
    """The step and the figures of a checkpoint; None where they cannot be read."""
    try:
        card = json.loads((place / "model.json").read_bytes())
        return card["step"], card["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clean(directory: Path) -> None:
    """Remove what a killed job left half written."""
    for stale in directory.glob(f".*{_PARTIAL}"):
        shutil.rmtree(stale, ignore_errors=True)


def _state(job: Prepared, generators: Sequence[Generators]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the state, and the rest of it as JSON."""
    trained, recipe = job.recipe.state()
    tensors: dict[str, Tensor] = {f"trained/{name}": tensor for name, tensor in trained.items()}
    values: dict[str, Any] = {"optimizer": {}, "recipe": recipe}
    for name, entries in optimizer_state(job.optimizer).items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
            else:
                values["optimizer"].setdefault(name, {})[key] = value
    for rank, (states, rest) in enumerate(generators):
        values[_place_of(rank)] = rest
        tensors.update({f"{_place_of(rank)}/{name}": state for name, state in states.items()})
    return tensors, values


def _place_of(rank: int) -> str:
    """Where a rank's generators lie."""
    return f"random-{rank}" if rank else "random"


def _restore(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[list[Generators], dict[str, Tensor]]:
    """Put back the optimizer's state; the generators of each rank that wrote it, and the weights that train beside an average."""
    state: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in values["optimizer"].items()}
    states: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, Tensor] = {}
    for path, tensor in tensors.items():
        kind, _, rest = path.partition("/")
        if kind == "trained":
            trained[rest] = tensor
        elif kind == "optimizer":
            key, _, name = rest.partition("/")
            state.setdefault(name, {})[key] = tensor
        else:
            states.setdefault(kind, {})[rest] = tensor
    load_optimizer_state(optimizer, state)
    return [(states[_place_of(rank)], values[_place_of(rank)]) for rank in range(len(states))], trained


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A new folder beside `place` that is gone afterwards, unless it was renamed. No room becomes DiskFullError."""
    folder = place.with_name(f".{place.name}{_PARTIAL}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        if is_no_room(error):
            raise DiskFullError(f"no room for the checkpoint of step {place.name}: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, place: Path) -> None:
    """Into its place; a damaged checkpoint of the same step, which a resume passed over, makes way."""
    if place.exists():
        aside = folder.with_name(f".{place.name}.old{_PARTIAL}")
        place.rename(aside)
        folder.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        folder.rename(place)
    _sync(place.parent)


def _write_json(path: Path, content: Mapping[str, Any]) -> Written:
    return write(path, iter([json.dumps(content, indent=1).encode(), b"\n"]))


def _check(content: Mapping[str, Any]) -> str:
    """A hash of state.json's own content, which no other file can vouch for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
