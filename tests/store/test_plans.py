"""The hot queries find their rows by an index, on both databases. Asked of the statements as they are really sent."""

from __future__ import annotations

from sqlalchemy import event, insert, text

from store import commands, events, jobs, leases
from store.leases import Capacity, Lease
from store.tables import EventRecord, Job


def test_the_hot_queries_use_their_indexes(database, submit, take):
    submit()
    lease = take().lease
    waiting = submit()
    fill(database, waiting, lease.job_id)
    capacity = Capacity(1, 1, 1)
    hot = {
        "claim": (lambda s: leases.claim(s, owner="x", queues=["default"], capacity=capacity, seconds=60), {"ix_jobs_claim"}),
        "renew": (lambda s: leases.renew(s, lease), {"pk_jobs", "ix_jobs_state"}),
        "append": (lambda s: events.append(s, lease, []), {"pk_jobs", "ix_jobs_state"}),
        "read": (lambda s: events.read(s, lease.job_id, after=500, limit=10), {"pk_events"}),
        "read kinds": (
            lambda s: events.read(s, lease.job_id, after=500, limit=10, kinds={"log", "epoch"}),
            {"pk_events", "ix_events_job_id_kind_seq"},
        ),
        "latest": (lambda s: events.latest(s, lease.job_id, "transfer"), {"ix_events_job_id_kind_seq"}),
        "fold": (lambda s: events.folded(s, lease.job_id, {"checkpoint"}), {"ix_events_job_id_kind_seq"}),
        "pending": (lambda s: commands.pending(s, Lease(waiting.id, 1, "x", 60)), {"ix_commands_pending"}),
        "page": (lambda s: jobs.find(s, after=waiting.id), {"pk_jobs"}),
        "page of a state": (lambda s: jobs.find(s, state="failed", after=waiting.id), {"ix_jobs_state"}),
        "position": (lambda s: jobs.position(s, waiting, [capacity]), {"ix_jobs_claim"}),
        "counts": (jobs.counts, {"ix_jobs_claim", "ix_jobs_state"}),
    }
    for name, (act, expected) in hot.items():
        plan = explain(database, act)
        assert any(index in plan for index in expected), f"{name}:\n{plan}"


def fill(database, job, busy):
    """A history: 3,000 jobs, most of them ended, and a log of 3,000 events."""
    one = {column.key: getattr(job, column.key) for column in Job.__table__.columns if column.key != "id"}
    states = [("queued", None), ("succeeded", 1.0), ("succeeded", 1.0), ("failed", 1.0)]
    rows = [
        {**one, "state": states[n % 4][0], "ended_at": states[n % 4][1], "queue": f"q{n % 7}", "priority": n % 5}
        for n in range(3000)
    ]
    event = {"job_id": busy, "at": 0.0, "attempt": 1, "kind": "iterations", "data": "{}" * 50}
    told = [{**event, "seq": seq, "step": seq} for seq in range(3, 3003)]
    with database.write() as session:
        session.execute(insert(Job), rows)
        session.execute(insert(EventRecord), told)
        if database.engine.dialect.name == "postgresql":  # SQLite is not analyzed in service either
            session.execute(text("ANALYZE"))


def explain(database, act):
    """The plans of all that `act` sends. PostgreSQL is kept from sequential scans: our tables are small, a service's are not."""
    sent = []
    with database.write() as session:
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", lambda *told: sent.append(told[2:4]))
        act(session)
        session.rollback()
    sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.connect() as connection:
        if not sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        prefix = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        rows = [row for statement, parameters in sent for row in connection.exec_driver_sql(prefix + statement, parameters)]
    plan = "\n".join(str(row[-1]) for row in rows)
    for table in ("jobs", "events"):  # SQLite's names for the index of a primary key
        plan = plan.replace(f"{table} USING INTEGER PRIMARY KEY", f"pk_{table}").replace(
            f"sqlite_autoindex_{table}_1", f"pk_{table}"
        )
    return plan
