"""What runs in the child: `core.training.job.fit`, its events sent up, permits, `cancel` and `pause` obeyed between steps."""

from __future__ import annotations

import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from core.adjustments import Adjustment, Adjustments
from core.errors import DiskFullError, SpecError, TrainingError, is_no_room
from core.events import CheckpointData, Data, Failure, FailureKind, Firing, Iteration, RuleData, validated
from core.places import Places
from core.spec import JobSpec
from core.training.distributed import is_lost, join
from core.training.divergence import HaltedError
from core.training.job import fit
from sandbox.channel import Channel
from worker.link import LOST, NO_DEVICE, CancelledError, Link, PausedError, sendable
from worker.printed import Capture

_NO_MEMORY = "out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed"  # the last: cuBLAS, cuDNN
_LESS_MEMORY = "Take a smaller loader.batch_size (half is a good first step) or dataset.image_size, or freeze more of the model."
_NOT_DETERMINISTIC = "does not have a deterministic implementation"
_OTHER_BITS = "Put another operation in its place, or set training.deterministic to false; then runs may differ a little."
_ASK_FOR_A_PLAN = "Ask POST /plans what is wrong with this spec now: a file may have changed since it was submitted."


def run(channel: Channel) -> None:
    """Train the job of the start message, as one of the ranks that the environment names.

    The last message is `done`, `cancelled`, `paused` or `failed`; or `lost`, where another rank is gone; or `no_device`.
    """
    start = channel.receive()
    asked = Adjustments(Adjustment(**one) for one in start["adjusted"])
    for one in start["adjust"]:
        asked.ask(Adjustment(**one))
    link = Link(channel, start["permit"], adjustments=asked)
    capture = Capture(link)
    try:
        _train(start, link)
    except CancelledError:
        capture.finish()
        link.end(kind="cancelled")
    except PausedError:
        capture.finish()
        link.end(kind="paused")
    except HaltedError as error:
        capture.finish()
        link.end(kind="paused", reason=str(error))
    except Exception as error:  # whatever it was, it has a type and goes up
        if (word := _no_fault(error)) is not None:
            capture.finish()
            link.end(**word)
            return
        failure = failure_of(error)
        if failure.type == "crashed":  # the frames nearest the error; those above them are torch's and ours
            for line in "".join(traceback.format_exception(error, limit=-3)).splitlines()[-20:]:
                link.line("error", line)
        capture.finish()
        link.end(kind="failed", failure=failure.model_dump(mode="json"))
    else:
        capture.finish()
        link.end(kind="done")


def _train(start: dict[str, Any], link: Link) -> None:
    spec, places = JobSpec.model_validate(start["spec"]), Places.model_validate(start["places"])
    resume = None if start["resume"] is None else [Path(path) for path in start["resume"]]
    device, directory = torch.device(start["device"]), Path(start["directory"])
    _touch(device)
    ranks = join(device)
    if ranks.rank == 0:  # permits are rank 0's; no step is done without it
        link.wait()
    job = fit(
        spec, places, directory, device=device, ranks=ranks, resume=resume, adjustments=link.adjustments, publish=link.finish,
        halts=lambda: link.paused, fired=[Firing(*one) for one in start["fired"]],
    )  # fmt: skip
    loses = stops = False  # steps, where it were paused here: a pause waits for the checkpoint that it has written
    with closing(job):
        for item in job:
            if ranks.rank:  # rank 0 tells it, and waits for all
                continue
            if isinstance(item, Iteration):
                link.iteration(item)
                loses = True
            else:
                link.event(*item)
                data = item[1]
                loses = loses and not isinstance(data, CheckpointData)
                stops = stops or (isinstance(data, RuleData) and data.rule == "early_stopping")
            if loses or _is_last(data, spec, stops=stops):
                link.finish()
            else:
                link.wait()


def _is_last(data: Data, spec: JobSpec, *, stops: bool) -> bool:
    """Whether the job ends with this: a pause that is heard now comes too late. `stops`: early stopping was told."""
    if not isinstance(data, CheckpointData) or not validated(data.figures):
        return False
    return stops or data.epoch + 1 == spec.training.epochs


def _no_fault(error: Exception) -> dict[str, Any] | None:
    """The last word where it is no fault of the job's; None where it is."""
    if isinstance(error, NoDeviceError):
        return {"kind": NO_DEVICE, "message": sendable(str(error)[:1000])}
    if not is_lost(error) or _says_no_memory(error):
        return None
    return {"kind": LOST, "message": sendable(f"{type(error).__name__}: {error}"[:1000])}


class NoDeviceError(Exception):
    """The GPU of this process cannot be used."""


def _touch(device: torch.device) -> None:
    """Use the device for the first time. Raises NoDeviceError where CUDA does not start on it, for whatever job."""
    if device.type != "cuda":
        return
    try:
        torch.zeros(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # an AssertionError: this torch is built without CUDA
        if _says_no_memory(error):  # another process has it all; the device is sound
            raise
        raise NoDeviceError(str(error).partition("\n")[0]) from error


def failure_of(error: BaseException) -> Failure:
    """An exception as a typed failure with the next thing to try."""
    if isinstance(error, TrainingError):
        return _failure(error.kind, str(error), error.hint)
    if isinstance(error, SpecError):
        return _failure(_kind_at(error.faults[0].pointer), str(error), _ASK_FOR_A_PLAN)
    if is_no_room(error):
        return _failure("disk_full", str(error), DiskFullError.hint)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _says_no_memory(error):
        return _failure("out_of_memory", str(error).partition("\n")[0] or "an allocation failed", _LESS_MEMORY)
    if isinstance(error.__cause__, TrainingError):
        return failure_of(error.__cause__)
    hint = _OTHER_BITS if _NOT_DETERMINISTIC in str(error) else TrainingError.hint
    return _failure("crashed", f"{type(error).__name__}: {error}", hint)


def _failure(kind: FailureKind | str, message: str, hint: str) -> Failure:
    return Failure.model_validate({"type": kind, "message": sendable(message[:4000]), "hint": hint})


def _kind_at(pointer: str) -> FailureKind:
    if pointer.startswith("/dataset"):
        return "data"
    return "transfer" if pointer.startswith("/pretrained") else "crashed"


def _says_no_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)
