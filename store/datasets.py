"""Uploaded datasets: stored once by their contents, and kept while a job that has not ended trains on them.

A job holds its dataset from the transaction that makes it (`store.jobs.create`): its row is locked there, and whoever deletes it
locks it first. So a dataset is either held in time, or seen to be gone.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.clock import now
from store.errors import Conflict, NotFound, PinLost
from store.states import FINAL
from store.tables import Dataset, Job

_SOURCE = re.compile(r"upload:([1-9][0-9]{0,18})")


def source(dataset_id: int) -> str:
    """How a spec names it."""
    return f"upload:{dataset_id}"


def create(session: Session, *, name: str | None, report: dict[str, Any]) -> tuple[Dataset, bool]:
    """A new dataset, and True; or the one that has the same contents, and False.

    `report` is the check's: `sha256`, `images` and `bytes` are read here.
    """
    same = select(Dataset).where(Dataset.sha256 == report["sha256"])
    if (found := session.scalars(same).one_or_none()) is not None:
        return found, False
    facts = {key: report[key] for key in ("sha256", "images", "bytes")}
    dataset = Dataset(name=name, report=report, created_at=now(session), **facts)
    try:
        with session.begin_nested():
            session.add(dataset)
            session.flush()
    except IntegrityError:
        # PostgreSQL: another upload of the same committed between the look and the insert
        return session.scalars(same).one(), False
    return dataset, True


def get(session: Session, dataset_id: int) -> Dataset:
    """The dataset. Raises NotFound."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound(f"there is no dataset {dataset_id}")
    return dataset


def find(session: Session, *, limit: int, after: int | None = None) -> tuple[list[Dataset], bool]:
    """A page of datasets, newest first, and whether there are more; the next page is `after` the last one's id."""
    statement = select(Dataset).order_by(Dataset.id.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(Dataset.id < after)
    found = list(session.scalars(statement))
    return found[:limit], len(found) > limit


def hold(session: Session, named: str) -> None:
    """See that the dataset that a new job names is there, if it is an uploaded one; it stays so until the transaction ends.

    Raises PinLost.
    """
    if (upload := _SOURCE.fullmatch(named)) is None:
        return
    there = select(Dataset.id).where(Dataset.id == int(upload[1])).with_for_update(read=True, key_share=True)
    if session.scalars(there).one_or_none() is None:
        raise PinLost(f"dataset {upload[1]} was deleted meanwhile; GET /datasets lists those that are there")


def unreadable(session: Session, named: str) -> list[str]:
    """The images that the check could not read, by name, the first thousand, if a job names an uploaded dataset that is there."""
    upload = _SOURCE.fullmatch(named)
    dataset = session.get(Dataset, int(upload[1])) if upload else None
    return [one["name"] for one in dataset.report["corrupt"]] if dataset else []


def delete(session: Session, dataset_id: int) -> None:
    """Forget it; its files are the caller's to remove, after the commit.

    Raises NotFound, and Conflict while a job that has not ended names it.
    """
    statement = select(Dataset).where(Dataset.id == dataset_id).with_for_update()
    dataset = session.scalars(statement).one_or_none()
    if dataset is None:
        raise NotFound(f"there is no dataset {dataset_id}")
    of_job = Job.spec[("dataset", "source")].as_string()
    users = select(Job.id).where(Job.state.not_in(FINAL), of_job == source(dataset_id)).order_by(Job.id).limit(4)
    if found := list(session.scalars(users)):
        named = ", ".join(str(job) for job in found[:3]) + (" and others" if len(found) > 3 else "")
        raise Conflict(f"dataset {dataset_id} is named by jobs that have not ended: {named}; cancel them, or wait for their end")
    session.delete(dataset)
    session.flush()


def ids(session: Session) -> set[int]:
    """The ids of all. Nobody else adds one until the transaction, which must write, ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE datasets IN SHARE MODE"))
    return set(session.scalars(select(Dataset.id)))
