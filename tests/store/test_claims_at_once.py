"""Many workers ask at once: each job goes to exactly one of them."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from core.events import Failure
from store import events, jobs, leases
from store.database import Database
from store.leases import Capacity

ONE_CPU = Capacity(gpus_free=0, gpus=0, cpu_free=1)


def work(url, owner, claimed):
    """Claim until nothing is left; `Database` is this worker's own, as in a process of its own."""
    own = Database(url)
    while True:
        with own.write() as session:
            claim = leases.claim(session, owner=owner, queues=["default"], capacity=ONE_CPU, seconds=60)
        if claim is None:
            break
        claimed.append(claim.lease)
    own.dispose()


def test_no_job_is_claimed_twice_and_none_is_left(url, database, submit):
    ids = [submit().id for _ in range(40)]
    claimed = []
    threads = [threading.Thread(target=work, args=(url, f"worker {number}", claimed)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.job_id for lease in claimed) == ids
    with database.read() as session:
        for lease in claimed:
            job = jobs.get(session, lease.job_id)
            assert (job.state, job.lease_owner, job.attempt) == ("running", lease.owner, 1)
            assert [event.seq for event in events.read(session, job.id, limit=10)] == [1, 2]


def test_jobs_that_come_back_while_others_claim_run_one_at_a_time(url, database, submit):
    """Workers that crash, a reaper, and claims, all at once: attempts rise by one and the failures add up."""
    ids = [submit(max_attempts=5).id for _ in range(4)]
    claimed = []

    def crash(owner):
        own = Database(url)
        for _ in range(8):
            with own.write() as session:
                claim = leases.claim(session, owner=owner, queues=["default"], capacity=ONE_CPU, seconds=60)
            if claim is not None:
                claimed.append((claim.lease.job_id, claim.lease.attempt))
                with own.write() as session:
                    failure = Failure(type="crashed", message="it died", hint="none")
                    leases.give_back(session, claim.lease, reason="it died", failure=failure, counted=True)
        own.dispose()

    threads = [threading.Thread(target=crash, args=(f"worker {number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [(job, attempt) for job in ids for attempt in range(1, 6)]
    with database.read() as session:
        for job in ids:
            assert jobs.get(session, job).state == "failed"
            seqs = [event.seq for event in events.read(session, job, limit=100)]
            assert seqs == list(range(1, len(seqs) + 1))
            assert events.last_seq(session, job) == (len(seqs), True)


def test_reapers_at_once_take_each_dead_job_back_once(url, clock, submit, take):
    ids = [submit().id for _ in range(10)]
    for _ in ids:
        take()
    clock.forward(61)
    reaped = []

    def reap():
        own = Database(url, clock)
        with own.write() as session:
            reaped.extend(leases.reap(session))
        own.dispose()

    threads = [threading.Thread(target=reap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reaped) == ids


PROCESS = """
import sys
from store import leases
from store.database import Database
database = Database(sys.argv[1])
sys.stdin.readline()
while True:
    with database.write() as session:
        claim = leases.claim(session, owner=sys.argv[2], queues=["default"], capacity=leases.Capacity(0, 0, 1), seconds=60)
    if claim is None:
        break
    print(claim.lease.job_id, flush=True)
"""


@pytest.mark.slow  # three interpreters that import SQLAlchemy
@pytest.mark.parametrize("url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.other_stack)], indirect=True)
def test_processes_share_the_work_as_threads_do(url, make_spec):
    """Three real processes, as three workers are: on SQLite what their locks share is the file alone."""
    database = Database(url)
    with database.write() as session:
        ids = [jobs.create(session, spec=make_spec(), plan={})[0].id for _ in range(30)]
    workers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, url, f"w{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    told = [worker.communicate("go\n")[0] for worker in workers]
    database.dispose()
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(int(number) for lines in told for number in lines.split()) == ids
