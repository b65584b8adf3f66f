"""The leases as a state machine: three workers, any number of jobs, and a clock, in whatever order Hypothesis thinks of.

The model beside it says what each call must do. A worker may act on any lease it ever had, as one does that was cut off for a
while; so each rule tries writes of old attempts too, which must leave everything as it was.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import and_, delete, select

import store.events
import store.fence
import store.leases
from core.adjustments import Adjustment
from core.events import Failure
from store import adjustments, commands, events, jobs, leases
from store.errors import Conflict, LeaseLost
from store.events import NewEvent
from store.fence import held
from store.leases import Capacity, Lease
from store.states import FINAL
from store.tables import EventRecord, Job

WORKERS = ("one", "two", "three")
SECONDS = 60.0
CRASH = Failure(type="crashed", message="it died", hint="Read the log.")
LOG = NewEvent(0, "log", {"level": "info", "message": "hello"})
CHECKPOINT = NewEvent(
    0, "checkpoint", {"step": 0, "epoch": 0, "figures": {}, "best": False, "path": "p", "sha256": "0", "bytes": 1}
)


@dataclass
class Model:
    """What a job must be."""

    id: int
    priority: int
    most: int
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    requested: str | None = None
    owner: str | None = None
    until: float = 0.0
    events: int = 1
    asked: list[int] = field(default_factory=list)
    """The adjustments that are still to be done."""

    def holds(self, lease: Lease) -> bool:
        return self.state == "running" and lease.attempt == self.attempt

    def to(self, state: str) -> None:
        self.events += 2 if state in FINAL else 1
        self.state, self.owner = state, None
        if state in FINAL or state == "paused":
            self.requested = None
        if state in FINAL:
            self.asked = []

    def back(self, *, counted: bool) -> None:
        self.failures += counted
        if self.requested == "cancel":
            self.to("cancelled")
        elif counted and self.failures >= self.most:
            self.to("failed")
        else:
            self.to("paused" if self.requested == "pause" else "queued")


@dataclass
class World:
    """What the tests of one database share."""

    database: object
    clock: object
    make_spec: object
    ended: set[str] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """The rules, each on the store and on the model."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.database, self.clock = world, world.database, world.clock
        self.jobs: dict[int, Model] = {}
        self.leases: list[Lease] = []
        with self.database.write() as session:
            session.execute(delete(Job))

    # -- what people do

    @rule(priority=st.integers(-1, 1), most=st.integers(1, 3))
    def submit(self, priority: int, most: int) -> None:
        spec = self.world.make_spec(resources={"priority": priority, "max_attempts": most})
        with self.database.write() as session:
            job, _ = jobs.create(session, spec=spec, plan={})
        self.jobs[job.id] = Model(job.id, priority, most)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        job = self.pick(data)
        with self.database.write() as session, self.refused(Conflict, job.state in FINAL):
            commands.cancel(session, job.id, "people")
        if job.state == "running":
            job.requested = "cancel"
        elif job.state not in FINAL:
            job.to("cancelled")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def pause(self, data) -> None:
        job = self.pick(data)
        with self.database.write() as session, self.refused(Conflict, job.state in FINAL or job.requested == "cancel"):
            commands.pause(session, job.id, "people")
        if job.state == "running" and job.requested is None:
            job.requested = "pause"
        elif job.state == "queued":
            job.to("paused")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def resume(self, data) -> None:
        job = self.pick(data)
        with self.database.write() as session, self.refused(Conflict, job.state in FINAL or job.requested == "cancel"):
            commands.resume(session, job.id, "people")
        if job.requested == "pause":
            job.requested = None
        elif job.state == "paused":
            job.to("queued")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def adjust(self, data) -> None:
        job = self.pick(data)
        with self.database.write() as session, self.refused(Conflict, job.state in FINAL or job.requested == "cancel"):
            opened = adjustments.open_job(session, job.id)
            asked = adjustments.adjust(session, opened, Adjustment("default", {"lr": 0.5}, None, "people"))
            job.asked.append(asked.id)

    # -- what workers do

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        with self.database.write() as session:
            claim = leases.claim(session, owner=worker, queues=["default"], capacity=Capacity(0, 0, 1), seconds=SECONDS)
        waiting = [job for job in self.jobs.values() if job.state == "queued"]
        best = min(waiting, key=lambda job: (-job.priority, job.id), default=None)
        assert (claim and claim.lease.job_id) == (best and best.id)
        if claim is not None:
            assert claim.lease == Lease(best.id, best.attempt + 1, worker, SECONDS)
            best.to("running")
            best.attempt, best.owner, best.until = claim.lease.attempt, worker, self.clock() + SECONDS
            self.leases.append(claim.lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data) -> None:
        lease, job = self.pick_lease(data)
        with self.database.write() as session:
            assert leases.renew(session, lease) == job.holds(lease)
        if job.holds(lease):
            job.until = self.clock() + SECONDS

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), event=st.sampled_from([LOG, CHECKPOINT]))
    def write(self, data, event: NewEvent) -> None:
        lease, job = self.pick_lease(data)
        with self.database.write() as session, self.fenced(job, lease):
            events.append(session, lease, [event])
        if job.holds(lease):
            job.events += 1
            job.failures = 0 if event is CHECKPOINT else job.failures

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def do_what_is_asked(self, data) -> None:
        lease, job = self.pick_lease(data)
        told = [{"id": number, "group": "default", "step": 0, "changes": {}, "by": "people"} for number in job.asked[:1]]
        with self.database.write() as session, self.fenced(job, lease):
            events.append(session, lease, [NewEvent(0, "adjusted", data) for data in told])
        if job.holds(lease):
            job.events += len(told)
            job.asked = job.asked[1:]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data, fails: bool) -> None:
        lease, job = self.pick_lease(data)
        state = "failed" if fails else "succeeded"
        with self.database.write() as session, self.fenced(job, lease):
            leases.finish(session, lease, state, CRASH if fails else None)
        if job.holds(lease):
            job.to(state)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), counted=st.booleans())
    def give_back(self, data, counted: bool) -> None:
        """The trainer crashed, or the worker stops."""
        lease, job = self.pick_lease(data)
        with self.database.write() as session, self.fenced(job, lease):
            leases.give_back(session, lease, reason="", failure=CRASH if counted else None, counted=counted)
        if job.holds(lease):
            job.back(counted=counted)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def obey(self, data) -> None:
        lease, job = self.pick_lease(data)
        with self.database.write() as session, self.fenced(job, lease):
            asked = {command.kind for command in commands.pending(session, lease)}
            assert not job.holds(lease) or asked - {"adjust", "pause"} == ({"cancel"} if job.requested == "cancel" else set())
            if "cancel" in asked:
                leases.finish(session, lease, "cancelled")
            else:
                leases.give_back(session, lease, reason="")
        if job.holds(lease):
            job.back(counted=False)

    @rule(worker=st.sampled_from(WORKERS))
    def crash(self, worker: str) -> None:
        """The worker is killed, and started again under its name."""
        with self.database.write() as session:
            taken = leases.release(session, worker)
        self.taken_back(taken, [job for job in self.jobs.values() if job.owner == worker])

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @rule()
    def reap(self) -> None:
        with self.database.write() as session:
            taken = leases.reap(session)
        self.taken_back(taken, [job for job in self.jobs.values() if job.state == "running" and job.until < self.clock()])

    # -- what always holds

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        with self.database.read() as session:
            found = {job.id: job for job in session.scalars(select(Job))}
        assert found.keys() == self.jobs.keys()
        for job in self.jobs.values():
            row = found[job.id]
            told = (row.state, row.attempt, row.failures, row.requested, row.lease_owner, row.last_seq)
            assert told == (job.state, job.attempt, job.failures, job.requested, job.owner, job.events)
            assert (row.ended_at is not None) == (row.state in FINAL)
            with self.database.read() as session:
                assert [one.id for one in adjustments.asked(session, job.id)] == job.asked

    @invariant()
    def no_attempt_has_two_holders(self) -> None:
        held = [(lease.job_id, lease.attempt) for lease in self.leases]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        """While workers live every job ends, and its log is whole."""
        for job in self.jobs.values():
            if job.state == "paused" or job.requested == "pause":
                with self.database.write() as session:
                    commands.resume(session, job.id, "people")
        self.clock.forward(SECONDS + 1)
        with self.database.write() as session:
            leases.reap(session)
        for _ in self.jobs:
            with self.database.write() as session:
                claim = leases.claim(session, owner="one", queues=["default"], capacity=Capacity(0, 0, 1), seconds=SECONDS)
                if claim is not None:
                    leases.finish(session, claim.lease, "succeeded")
        with self.database.read() as session:
            states = list(session.scalars(select(Job.state)))
            log = session.execute(select(EventRecord.job_id, EventRecord.attempt, EventRecord.kind).order_by(EventRecord.seq))
            rows = [tuple(row) for row in log]
        assert set(states) <= FINAL
        self.world.ended.update(states)
        for job_id in self.jobs:
            own = [(attempt, kind) for job, attempt, kind in rows if job == job_id]
            assert [kind for _, kind in own].count("end") == 1
            assert own[-1][1] == "end"
            assert [attempt for attempt, _ in own] == sorted(attempt for attempt, _ in own)

    # -- how

    def pick(self, data) -> Model:
        return self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]

    def pick_lease(self, data) -> tuple[Lease, Model]:
        """Of those that were ever given; the newest half of the time."""
        newest = data.draw(st.booleans())
        lease = self.leases[-1] if newest else data.draw(st.sampled_from(self.leases))
        return lease, self.jobs[lease.job_id]

    def taken_back(self, taken: list[int], expected: list[Model]) -> None:
        assert taken == [job.id for job in expected]
        for job in expected:
            job.back(counted=True)

    def fenced(self, job: Model, lease: Lease):
        return self.refused(LeaseLost, not job.holds(lease))

    @contextmanager
    def refused(self, error: type[Exception], expected: bool):
        if not expected:
            yield
            return
        with pytest.raises(error):
            yield


def test_whatever_happens_a_job_has_one_holder_and_one_end(url, database, clock, make_spec):
    world = World(database, clock, make_spec)
    examples = 25 if url.startswith("sqlite") else 15
    run_state_machine_as_test(
        lambda: Machine(world),
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    assert world.ended == {"succeeded", "failed", "cancelled"}


# -- whether it can fail


def without_state(lease):
    return and_(Job.id == lease.job_id, Job.attempt == lease.attempt)


def without_attempt(lease):
    return and_(Job.id == lease.job_id, Job.state == "running")


def late_writes(machine: Machine) -> int:
    """A lost worker writes to its job: once while that waits, once while another has it. How often the machine objects."""
    machine.submit(0, 3)
    machine.claim("one")
    machine.crash("one")
    objections = 0
    for _ in range(2):
        told = iter([False, machine.leases[0]])  # of all leases, the first
        try:
            machine.write(SimpleNamespace(draw=lambda _, told=told: next(told)), LOG)
        except pytest.fail.Exception:
            objections += 1
        machine.claim("two")
    return objections


@pytest.mark.parametrize(("fence", "objections"), [(held, 0), (without_state, 1), (without_attempt, 1)])
def test_the_machine_objects_to_a_store_with_half_a_fence(database, clock, make_spec, monkeypatch, fence, objections):
    for module in (store.fence, store.leases, store.events):
        monkeypatch.setattr(module, "held", fence)
    assert late_writes(Machine(World(database, clock, make_spec))) == objections
