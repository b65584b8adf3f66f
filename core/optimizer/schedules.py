"""Schedules by torch's names: checked, what they leave out filled in, a curve for each parameter group; and their one hook."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from core.catalog import (
    LENGTHS,
    REFUSED_SCHEDULE_KEYWORDS,
    default_per,
    optimizer_class,
    schedule_class,
    schedule_defaults,
)
from core.errors import Fault, SpecError, pointer_of
from core.events import Figure, number
from core.figures import better
from core.keywords import check_keywords
from core.optimizer.assignment import Group
from core.optimizer.curves import Curve
from core.optimizer.forms import PLATEAU
from core.optimizer.hyperparameters import as_torch
from core.spec import JobSpec, OptimizerSpec, ScheduleSpec

_COUNTS = {"T_0", "T_max", "T_mult", "epochs", "step_size", "steps_per_epoch", "total_iters", "total_steps"}
_NO_NUMBERS = {"anneal_strategy", "cycle_momentum", "mode", "three_phase", "threshold_mode"}
_PER_GROUP = ("max_lr", "base_momentum", "max_momentum", "min_lr")
"""Where torch takes a list too: a number for each group."""


class _Job(NamedTuple):
    per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        return self.per_epoch * self.epochs


def check(spec: JobSpec) -> list[Fault]:
    """The faults of the schedules' names, keywords and values, as far as they show without a model and a dataset."""
    faults: list[Fault] = []
    for pointer, written in specs_of(spec):
        try:
            target = constant if written.name is None else schedule_class(written.name, pointer)
        except SpecError as error:
            faults += error.faults
            continue
        found = check_keywords(
            target, written.keywords, pointer, refused=REFUSED_SCHEDULE_KEYWORDS, ours=ScheduleSpec.model_fields
        )
        faults += found or [*_check_values(written, pointer), *_check_own(target, written, pointer)]
    return faults


def assign(groups: Sequence[Group], spec: JobSpec, per_epoch: int) -> list[Group]:
    """The same groups, each with its curve over a job of `per_epoch` steps an epoch; None where its lr is constant.

    A group's own schedule goes before the job's; a plateau names its figure (`core.resolve`). Raises SpecError below /schedule
    and /optimizer/groups/N/schedule.
    """
    faults = dict.fromkeys(check(spec))
    if faults:
        raise SpecError(*faults)
    own = dict(zip(spec.optimizer.group_names, _pointers(spec.optimizer), strict=True))
    job = _Job(per_epoch, spec.training.epochs)
    sound: set[str] = set()
    assigned = []
    called = list(dict.fromkeys(group.of for group in groups))
    for group in groups:
        pointer, written = own.get(group.of, ("", None))
        if written is None:
            pointer, written = "/schedule", spec.schedule
        try:
            curve = None if written is None else _curve(written, group, job, (called.index(group.of), len(called)), pointer)
            if curve is not None and (key := curve.schedule.model_dump_json(exclude={"max_lr"})) not in sound:
                _try(curve, spec.optimizer, job.total, pointer)
                sound.add(key)
            assigned.append(replace(group, curve=curve))
        except SpecError as error:
            faults.update(dict.fromkeys(error.faults))
    if faults:
        raise SpecError(*faults)
    return assigned


def set_rates(optimizer: Optimizer, step: int) -> None:
    """Give each scheduled group what its curve has for the optimizer's step of that number. The others keep what they have.

    A scheduled momentum is `momentum`, or where the optimizer has betas the first of them, as in torch's OneCycleLR.
    """
    for group in optimizer.param_groups:
        curve: Curve | None = group.get("curve")
        if curve is None:
            continue
        group["lr"] = curve.lr(step)
        momentum = curve.momentum(step)
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None:
            group["momentum"] = momentum


def hear(optimizer: Optimizer, history: Sequence[Mapping[str, Figure]]) -> None:
    """Tell the curves that go by it the validation figures of each epoch of the job so far."""
    for group in optimizer.param_groups:
        curve: Curve | None = group.get("curve")
        if curve is not None and (metric := curve.schedule.metric) is not None:
            group["curve"] = replace(curve, past=tuple(number(figures[metric]) for figures in history))


def specs_of(spec: JobSpec) -> list[tuple[str, ScheduleSpec]]:
    """Every schedule of a spec, with its place."""
    return [(at, one) for at, one in [("/schedule", spec.schedule), *_pointers(spec.optimizer)] if one is not None]


def notes(groups: Iterable[Group], total: int) -> Iterator[str]:
    """What works over a job of `total` steps, but may not be what was meant; each said once."""
    said: dict[str, None] = {}
    for group in groups:
        if group.curve is not None and not (group.freeze and group.until_epoch is None):
            said.update(dict.fromkeys(_notes(group.name, group.curve, total)))
    yield from said


def constant() -> None:
    """A schedule without a name: it takes no keywords of its own."""


def _pointers(spec: OptimizerSpec) -> list[tuple[str, ScheduleSpec | None]]:
    """Of each group of the spec, the place of its own schedule, and that."""
    return [(pointer_of("optimizer", "groups", index, "schedule"), one.schedule) for index, one in enumerate(spec.groups)]


def _check_values(written: ScheduleSpec, pointer: str) -> Iterator[Fault]:
    """What torch would take, and then divide by, or train with backwards."""
    for key, value in written.keywords.items():
        listed = isinstance(value, list)
        if key == "milestones" and not listed:
            yield Fault(pointer + pointer_of(key), f"expects a list of integers, got {value!r}")
        elif key not in _NO_NUMBERS:
            message = next((message for one in (value if listed else [value]) if (message := _misfit(key, one))), None)
            if message:
                yield Fault(pointer + pointer_of(key), f"{message}, got {value!r}")


def _misfit(key: str, value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if key == "milestones":
        return None if whole and value >= 0 else "expects integers of 0 or more"
    if not whole and not isinstance(value, float):
        return "expects a number"
    if key in _COUNTS:
        return None if whole and value >= 1 else "expects an integer of 1 or more"
    if key in {"div_factor", "final_div_factor"}:
        return None if value > 0 else "expects a number above 0"
    if key in {"base_momentum", "max_momentum"}:
        return None if 0 <= value < 1 else "expects a number from 0 to below 1"
    return None if value >= 0 else "expects 0 or more"


def _check_own(target: Any, written: ScheduleSpec, pointer: str) -> Iterator[Fault]:
    """What is not torch's to say: keys that have to be there, and ours where they fit nothing."""
    filled_in = {LENGTHS.get(written.name or ""), "max_lr", *REFUSED_SCHEDULE_KEYWORDS}
    for key, one in inspect.signature(target).parameters.items():
        if one.default is one.empty and key not in written.keywords and key not in filled_in:
            yield Fault(pointer + pointer_of(key), f"{written.name} needs it, torch has no default")
    if written.name == PLATEAU:
        mode = better(written.metric or "loss")
        if written.per == "step":
            yield Fault(f"{pointer}/per", f"{PLATEAU} goes by the validation, which ends each epoch; leave it out")
        if written.metric and written.keywords.get("mode", mode) != mode:
            yield Fault(f"{pointer}/mode", f"of {written.metric} the best is the {mode}; leave one of the two out")
    elif written.metric:
        yield Fault(f"{pointer}/metric", f"{PLATEAU} alone reads it; leave it out")


def _curve(written: ScheduleSpec, group: Group, job: _Job, place: tuple[int, int], pointer: str) -> Curve | None:
    """The curve of the group at `place` (its number, of how many). Raises SpecError where the job is too short for it."""
    lr = float(group.hyperparameters["lr"])
    warmup = _warmup(written, job, pointer)
    filled = {"per": "step", "warmup_steps": warmup, "warmup_start": written.warmup_start}
    if written.name is not None:
        per = written.per or default_per(written.name)
        left = job.total - warmup if per == "step" else job.epochs - warmup // job.per_epoch
        given = {key: _own(value, key, place, pointer) for key, value in written.keywords.items() if value is not None}
        keywords = schedule_defaults(written.name) | given
        if written.name in LENGTHS:
            keywords[LENGTHS[written.name]] = given.get(LENGTHS[written.name], left)
        if written.name == "OneCycleLR":
            counted = job._replace(per_epoch=1) if per == "epoch" else job
            keywords = _one_cycle(given, keywords, lr=lr, left=left, job=counted, pointer=pointer)
        filled |= {"name": written.name, "per": per, "metric": written.metric, **keywords}
        if written.metric is not None:
            filled["mode"] = better(written.metric)
    elif not warmup:
        return None
    return Curve(base=lr, schedule=ScheduleSpec.model_validate(filled), per_epoch=job.per_epoch)


def _warmup(written: ScheduleSpec, job: _Job, pointer: str) -> int:
    """In steps."""
    epochs = written.warmup_epochs
    steps = written.warmup_steps if epochs is None else round(epochs * job.per_epoch)
    if steps >= job.total:
        key = "warmup_steps" if epochs is None else "warmup_epochs"
        raise SpecError.at(f"{pointer}/{key}", f"the warmup takes {steps} steps, but the job has {job.total}; warm up for less")
    return steps


def _own(value: Any, key: str, place: tuple[int, int], pointer: str) -> Any:
    """The group's number out of torch's list of one for each group."""
    if key not in _PER_GROUP or not isinstance(value, list):
        return value
    index, count = place
    if pointer != "/schedule":
        raise SpecError.at(f"{pointer}/{key}", "a group's own schedule takes one number")
    if len(value) != count:
        groups = "1 group" if count == 1 else f"{count} groups"
        raise SpecError.at(f"{pointer}/{key}", f"it has {len(value)} numbers, but there are {groups}, `default` the last of them")
    return value[index]


def _one_cycle(
    given: Mapping[str, Any], keywords: dict[str, Any], *, lr: float, left: int, job: _Job, pointer: str
) -> dict[str, Any]:  # fmt: skip
    """Its own keywords, each with a value. The cycle has to last."""
    total = keywords["total_steps"]
    if "total_steps" not in given and given.keys() & {"epochs", "steps_per_epoch"}:
        total = given.get("epochs", job.epochs) * given.get("steps_per_epoch", job.per_epoch)
    if total < left:
        blamed = next(key for key in ("total_steps", "epochs", "steps_per_epoch") if key in given)
        told = f"the cycle is over after {total}, but the job goes on for {left}, and torch's OneCycleLR goes no further"
        raise SpecError.at(f"{pointer}/{blamed}", f"{told}; leave it out")
    own = {"total_steps": total, "max_lr": given.get("max_lr", lr), "pct_start": float(keywords["pct_start"])}
    return {key: value for key, value in {**keywords, **own}.items() if key not in {"epochs", "steps_per_epoch"}}


def _try(curve: Curve, spec: OptimizerSpec, total: int, pointer: str) -> None:
    """Let torch make its scheduler, on an optimizer that is not used, and read the curve. Raises SpecError where either fails."""
    schedule = curve.schedule
    try:
        if schedule.name is not None:
            optimizer = optimizer_class(spec.name)([nn.Parameter(torch.zeros(2, 2))], **as_torch(spec.keywords))
            with warnings.catch_warnings(action="ignore"):
                schedule_class(schedule.name, pointer)(optimizer, **schedule.keywords)
        odd = next(((step, lr) for step, lr in curve.points(total) if not math.isfinite(lr)), None)
        if odd is not None:
            raise ValueError(f"at step {odd[0]} lr would be {odd[1]}")
    except (ArithmeticError, ValueError, TypeError) as error:
        blamed = next((key for key in schedule.keywords if key.lower() in str(error).lower()), None)
        raise SpecError.at(pointer + (pointer_of(blamed) if blamed else ""), _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return "lr would grow beyond all numbers"
    if isinstance(error, ZeroDivisionError):
        return "one of its phases would have no steps; choose another pct_start"
    return f"torch refuses it: {error}"


def _notes(name: str, curve: Curve, total: int) -> Iterator[str]:
    schedule, keywords = curve.schedule, curve.schedule.keywords
    last = curve.time(total - 1)
    unit = "epochs" if schedule.per == "epoch" else "steps"
    for key in ("T_0", "T_max", "step_size", "total_iters", "total_steps"):
        if keywords.get(key, 0) > last + 1:
            yield f"{schedule.name}: {key} is {keywords[key]}, but the job ends after {last + 1} {unit}"
    if beyond := [time for time in keywords.get("milestones", []) if time > last]:
        times = ", ".join(map(str, beyond))
        yield f"{schedule.name}: the milestones {times} have no effect: the job has {last + 1} {unit}"
    if keywords.get("eta_min", 0) > curve.base:
        yield f"group '{name}': eta_min is above its lr, so the schedule raises it"
    if keywords.get("max_lr", curve.base) != curve.base:
        yield f"group '{name}': its lr of {curve.base:g} has no effect, OneCycleLR goes up to max_lr"
    if schedule.name == PLATEAU:
        yield f"{PLATEAU} goes by the validation of each epoch: the plan shows lr as it begins"
    *_, before, end = [(0, 1.0), *curve.points(total)]
    if before[1] == end[1] == 0:
        yield f"group '{name}': from step {before[0]} on lr is 0 and nothing is learnt"
