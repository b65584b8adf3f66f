"""What a validation found: each class, what is taken for what, the hardest samples; and the samples of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from api import plans, problems, schemas
from api.answers import JsonResponse
from api.dependencies import INT64, JobId, Service, Svc
from api.problems import ProblemError
from core.errors import Fault
from core.events import EpochData, Figure, LeftOutData, RewoundData, Row, without
from store import events, jobs
from store.tables import Job

router = APIRouter(prefix="/jobs/{job_id}", tags=["reports"])

Epoch = Annotated[int | None, Query(ge=0, le=INT64, description="From 0; by default the last one that is done.")]
Step = Annotated[int | None, Query(ge=0, le=INT64, description="From 0 over the whole job, as in `/losses`.", examples=[96])]
LogEpoch = Annotated[
    int | None, Query(ge=1, le=INT64, description="In place of `step`: with `iteration`, from 1, as the lines of `/logs` count.")
]
LogIteration = Annotated[int | None, Query(ge=1, le=INT64, description="With `epoch`: from 1 within it.")]


@router.get("/evaluation", summary="A validation in full", response_model=schemas.Evaluation, responses=problems.responses(404))
def get_evaluation(job_id: JobId, service: Svc, epoch: Epoch = None) -> Response:
    """The figures of each class, the confusions, and the samples with the highest loss, of one epoch's validation."""
    with service.database.read() as session:
        job = jobs.get(session, job_id)
        found = events.evaluation(session, job_id, epoch)
        epochs = events.folded(session, job_id, {EpochData.kind})
    if found is None:
        raise _missing(job, epoch)
    step, data = found
    figures: dict[str, Any] | None = next((row.data["validation"] for row in epochs if row.data["epoch"] == data["epoch"]), {})
    return JsonResponse(_answer(data, step, figures, _classes(job)))


@router.get(
    "/samples",
    summary="The samples of a step",
    response_model=schemas.StepSamples,
    responses=problems.responses(404, 409),
)
async def get_samples(
    job_id: JobId, service: Svc, step: Step = None, epoch: LogEpoch = None, iteration: LogIteration = None
) -> Response:
    """The training samples of an optimizer step, by name, and its loss: what is behind a spike.

    They are a function of the spec, the dataset and the step, so a step that is still to come may be asked for too. 409 where the
    dataset is no longer the one that the job was submitted with. `left_out` marks an image that could not be read, and was in no
    batch from then on.
    """
    job, rows = await run_in_threadpool(_job, service, job_id)
    step = _step(job, step, epoch, iteration)
    fingerprint = job.plan.get("dataset", {}).get("fingerprint")
    payload = {"spec": job.spec, "places": service.settings.places(), "step": step, "fingerprint": fingerprint}
    derived = await plans.ask(service, "core.data.forensics:samples_request", payload)
    if derived["found"] is None:
        told = f"its fingerprint is {derived['fingerprint'][:12]}… now, and was {fingerprint[:12]}… when the job was submitted"
        detail = f"'{job.spec['dataset']['source']}' has changed, so nobody can tell what job {job_id} trained on: {told}"
        raise ProblemError(409, "dataset-changed", detail)
    left_out = without(rows, step)
    samples = [{**sample, "left_out": sample["index"] in left_out} for sample in derived["found"]["samples"]]
    loss = await run_in_threadpool(_loss, service, job_id, step)
    per_epoch = _per_epoch(job)
    counted = None if per_epoch is None else step % per_epoch + 1
    return JsonResponse({**derived["found"], "samples": samples, "iteration": counted, "loss": loss})


def _step(job: Job, step: int | None, epoch: int | None, iteration: int | None) -> int:
    """The step that is asked for by its number, or as the lines of the log count."""
    per_epoch = _per_epoch(job)
    faults = []
    if (step is None) == (epoch is None) or (epoch is None) != (iteration is None):
        faults.append(Fault("query/step", "send either step, or epoch and iteration as the log counts them"))
    elif step is not None:
        if job.steps_total is not None and step >= job.steps_total:
            faults.append(Fault("query/step", f"job {job.id} has no step {step}; its steps are 0 to {job.steps_total - 1}"))
    elif per_epoch is None:
        faults.append(Fault("query/iteration", "how many an epoch has is known once a worker has begun; until then send step"))
    elif epoch is not None and iteration is not None:
        if epoch > job.epochs:
            faults.append(Fault("query/epoch", f"job {job.id} has no epoch {epoch}; its epochs are 1 to {job.epochs}"))
        if iteration > per_epoch:
            told = f"an epoch of job {job.id} has no iteration {iteration}; it has 1 to {per_epoch}"
            faults.append(Fault("query/iteration", told))
        step = (epoch - 1) * per_epoch + iteration - 1
    if faults or step is None:
        raise ProblemError.of_faults("invalid-parameter", faults)
    return step


def _per_epoch(job: Job) -> int | None:
    return job.steps_total // job.epochs if job.steps_total else None


def _loss(service: Service, job_id: int, step: int) -> Figure | None:
    with service.database.read() as session:
        return events.losses(session, job_id).at(step)


def _job(service: Service, job_id: int) -> tuple[Job, list[Row]]:
    """And what its log says of images that it left out."""
    with service.database.read() as session:
        return jobs.get(session, job_id), events.of_kinds(session, job_id, {LeftOutData.kind, RewoundData.kind})


def _missing(job: Job, epoch: int | None) -> ProblemError:
    """404, with when it will be there."""
    if epoch is None or epoch < job.epoch:
        which = "" if epoch is None else f" of epoch {epoch}"
        when = "none was made" if job.ended_at is not None or job.epoch else "the first is made at the end of the first epoch"
    else:
        which, when = f" of epoch {epoch}", f"{job.epoch} of its {job.epochs} epochs are done, and the first is epoch 0"
    return ProblemError(404, "not-yet", f"job {job.id} is {job.state} and has no evaluation{which}: {when}")


def _classes(job: Job) -> list[str]:
    classes: list[str] = job.plan.get("dataset", {}).get("classes", [])
    return classes


def _answer(data: dict[str, Any], step: int, figures: dict[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """A stored `evaluation` with the names of the classes, as `schemas.Evaluation`."""

    def named(number: int) -> str:
        return names[number] if number < len(names) else str(number)

    def told(numbers: list[Any]) -> Any:
        if data["task"] == "regression":
            return numbers
        labels = [named(number) for number in numbers]
        return labels[0] if data["task"] == "multiclass" else labels

    columns = {key: values for key, values in data["per_class"].items() if values is not None}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    confused = data["confused"]
    return {
        "epoch": data["epoch"],
        "step": step,
        "task": data["task"],
        "samples": data["samples"],
        "figures": figures or {},
        "classes": [{"name": named(number), **row, **_shares(row)} for number, row in enumerate(rows)],
        "confused": confused
        and [{"target": named(row), "prediction": named(column), "samples": count} for row, column, count in confused],
        "confused_left_out": data["confused_left_out"],
        "hardest": data["hardest"]
        and [{**one, "target": told(one["target"]), "prediction": told(one["prediction"])} for one in data["hardest"]],
    }


def _shares(row: dict[str, Any]) -> dict[str, float | None]:
    """Recall, precision and F1 of a class, from its counts; null where they are of no sample."""
    if "support" not in row:
        return {}
    correct, support, predicted = row["correct"], row["support"], row["predicted"]
    return {
        "recall": correct / support if support else None,
        "precision": correct / predicted if predicted else None,
        "f1": 2 * correct / (support + predicted) if support + predicted else None,
    }
