from __future__ import annotations

import sqlite3
import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from store import clock as clocks
from store import engines, jobs, leases
from store.database import Database
from store.tables import EventRecord, Job


def test_a_write_commits_at_its_end(database, submit):
    job = submit()
    with database.read() as session:
        assert jobs.get(session, job.id).state == "queued"


def test_a_write_that_raises_leaves_nothing(database, make_spec):
    def create_and_fail():
        with database.write() as session:
            jobs.create(session, spec=make_spec(), plan={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        create_and_fail()
    with database.read() as session:
        assert jobs.find(session) == ([], False)


def test_after_a_write_that_raised_the_next_one_works(database, make_spec, submit):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), database.write():
            raise ZeroDivisionError
    submit()


def test_writers_that_read_first_lose_no_update(url, submit):
    """Without BEGIN IMMEDIATE most of these are lost on SQLite. Each writer has a lock of its own, as processes have."""
    job = submit()

    def add(count: int) -> None:
        own = Database(url)
        for _ in range(count):
            with own.write() as session:
                # for PostgreSQL the lock that store's own code takes
                row = session.get(Job, job.id, with_for_update=True)
                row.priority = row.priority + 1
        own.dispose()

    threads = [threading.Thread(target=add, args=(25,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = Database(url)
    with own.read() as session:
        assert jobs.get(session, job.id).priority == 100
    own.dispose()


def test_reading_does_not_wait_for_a_writer(database, submit):
    submit()
    with database.write() as writer:
        writer.execute(text("UPDATE jobs SET priority = 9"))
        with database.read() as reader:
            assert jobs.find(reader)[0][0].priority == 0


def test_the_clock_is_the_databases_own_and_resolves_milliseconds(url):
    database = Database(url)
    with database.read() as session:
        first = database.now(session)
        time.sleep(0.005)
        second = database.now(session)
    database.dispose()
    assert abs(first - time.time()) < 5
    assert 0.003 < second - first < 2


def test_time_is_written_as_iso_8601_in_utc():
    assert clocks.iso(1_800_000_000.1234) == "2027-01-15T08:00:00.123Z"
    assert clocks.iso(1_800_000_000) == "2027-01-15T08:00:00.000Z"


def test_an_event_without_its_job_is_refused(database):
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(EventRecord(job_id=404, seq=1, at=0, attempt=0, step=0, kind="log", data="{}"))


def test_sqlite_keeps_a_log_that_readers_do_not_block(sqlite_url):
    database = Database(sqlite_url)
    with database.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "busy_timeout")
        }
    database.dispose()
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 30_000}


def test_a_new_file_that_another_process_is_writing_to_is_waited_for(tmp_path):
    """SQLite refuses the switch to write-ahead logging at once, whatever the timeout, while another has begun to write."""
    path = tmp_path / "graft.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (n INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.1, other.commit)
    done.start()
    database = Database(f"sqlite:///{path}")
    with database.read() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    database.dispose()
    done.join()
    other.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [("mysql://localhost/graft", "'mysql' is no database"), ("sqlite://", "name a file"), ("sqlite:///:memory:", "name a file")],
)
def test_a_database_that_cannot_serve_is_refused(url, says):
    with pytest.raises(ValueError, match=says):
        Database(url)


def test_a_worker_that_froze_inside_a_transaction_does_not_keep_its_job_for_ever(postgres_url, make_spec):
    """As its host does when it loses its power: PostgreSQL would hold the locks for as long as TCP does, two hours."""
    hasty = f"{postgres_url}&options=-c%20idle_in_transaction_session_timeout%3D200"
    frozen, other = Database(hasty), Database(postgres_url)
    with other.write() as session:
        jobs.create(session, spec=make_spec(), plan={"steps": {"total": 100}})
        claim = leases.claim(session, owner="frozen", queues=["default"], capacity=leases.Capacity(0, 0, 1), seconds=-1)

    def reap() -> list[int]:
        with other.write() as session:
            return leases.reap(session)

    def write() -> None:
        with frozen.write() as session:
            assert leases.renew(session, claim.lease)
            assert reap() == []  # its row is locked
            until(lambda: reap() == [claim.lease.job_id])
            leases.renew(session, claim.lease)

    with pytest.raises(engines.AWAY):  # it tries again, and learns that the lease is lost
        write()
    with frozen.write() as session:
        assert not leases.renew(session, claim.lease)
    for database in frozen, other:
        database.dispose()


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_transaction_whose_client_is_silent_ends_unless_the_url_says_otherwise(postgres_url):
    def setting(url: str) -> str:
        database = Database(url)
        with database.read() as session:
            answer = session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
        database.dispose()
        return answer

    assert setting(postgres_url) == f"{engines.IDLE_SECONDS}s"
    assert setting(f"{postgres_url}&options=-c%20idle_in_transaction_session_timeout%3D5min&connect_timeout=3") == "5min"
