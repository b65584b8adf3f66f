"""Uploaded datasets: one row for the same contents, and none goes while a job needs it."""

from __future__ import annotations

import threading

import pytest

from store import commands, datasets, jobs
from store.errors import Conflict, NotFound, PinLost
from store.tables import Dataset


@pytest.fixture
def upload(database):
    """`upload("abc")`: the row of contents with this hash, and whether it is new."""

    def make(sha256, name=None):
        with database.write() as session:
            return datasets.create(session, name=name, report={"sha256": sha256, "images": 3, "bytes": 5, "warnings": ["w"]})

    return make


def delete(database, dataset_id):
    with database.write() as session:
        datasets.delete(session, dataset_id)


def test_the_same_contents_are_one_row_and_it_keeps_its_first_name(upload, database, clock):
    first, new = upload("abc", "pets")
    again, renewed = upload("abc", "dogs")
    assert (new, renewed, again.id, again.name) == (True, False, first.id, "pets")
    with database.read() as session:
        stored = datasets.get(session, first.id)
    assert (stored.images, stored.bytes, stored.report["warnings"], stored.created_at) == (3, 5, ["w"], clock.time)


def test_many_uploads_of_the_same_at_once_are_one_row(upload, database):
    start, made = threading.Barrier(4), []

    def run():
        start.wait()
        made.append(upload("abc"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new for _, new in made) == [False, False, False, True]
    assert len({dataset.id for dataset, _ in made}) == 1


def test_they_are_found_newest_first_page_by_page(upload, database):
    made = [upload(str(number))[0].id for number in range(3)]
    with database.read() as session:
        page, more = datasets.find(session, limit=2)
        rest, end = datasets.find(session, limit=2, after=page[-1].id)
    assert [one.id for one in page + rest] == made[::-1]
    assert (more, end) == (True, False)


def test_one_that_a_job_names_stays_until_the_job_has_ended(upload, database, submit):
    held, other = upload("abc")[0].id, upload("def")[0].id
    job = submit(spec={"dataset": {"source": f"upload:{held}"}})
    submit(spec={"dataset": {"source": "sklearn:digits"}})
    delete(database, other)
    with pytest.raises(Conflict, match=f"jobs that have not ended: {job.id};"):
        delete(database, held)
    with database.write() as session:
        commands.cancel(session, job.id, by="test")
    delete(database, held)
    with pytest.raises(NotFound):
        delete(database, held)
    assert upload("abc")[0].id > other, "an id is never used again"


def test_a_job_on_one_that_went_meanwhile_is_not_made(upload, database, submit):
    gone = upload("abc")[0].id
    delete(database, gone)
    with pytest.raises(PinLost, match=f"dataset {gone} was deleted"):
        submit(spec={"dataset": {"source": f"upload:{gone}"}})


def test_a_deletion_waits_for_the_job_that_is_just_being_made(upload, database, make_spec):
    """Either the job finds the dataset gone, or the deletion finds the job: here the job was first."""
    held = upload("abc")[0].id
    outcome = []

    def remove():
        try:
            delete(database, held)
        except Conflict as error:
            outcome.append(error)

    remover = threading.Thread(target=remove)
    with database.write() as session:
        jobs.create(session, spec=make_spec(dataset={"source": f"upload:{held}"}), plan={})
        remover.start()
        remover.join(0.2)
        assert remover.is_alive()
    remover.join(30)
    assert len(outcome) == 1


def test_whoever_asks_for_all_ids_sees_no_row_in_the_making(upload, database):
    """A folder without a row is dead only if no upload stands between its rename and its commit."""
    seen = []

    def look():
        with database.write() as session:
            seen.append(datasets.ids(session))

    looker = threading.Thread(target=look)
    with database.write() as session:
        session.add(Dataset(sha256="abc", images=1, bytes=1, report={}, created_at=0.0))
        session.flush()
        looker.start()
        looker.join(0.2)
        assert seen == []
    looker.join(30)
    assert len(seen[0]) == 1
