from __future__ import annotations

import io
import threading

import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pytest_alembic import tests as alembic_tests
from sqlalchemy import CheckConstraint, NullPool, Text, create_engine, inspect, text

from core.adjustments import Adjustment
from store import adjustments, commands, engines, events, jobs, leases, schema
from store.database import Database
from store.leases import Capacity


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path):
    """The URL of a database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'empty.db'}"
    url = request.getfixturevalue("postgres")
    server = create_engine(engines.parse(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS empty WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE empty"))
    return url.replace("/postgres?", "/empty?")


@pytest.fixture
def empty(empty_url):
    made = Database(empty_url)
    yield made
    made.dispose()


@pytest.fixture
def alembic_config():
    return schema.config()


@pytest.fixture
def alembic_engine(empty_url, tmp_path):
    (tmp_path / "folder").mkdir(exist_ok=True)
    engine = engines.engine(empty_url, poolclass=NullPool)
    yield engine
    engine.dispose()


def test_there_is_one_head(alembic_runner):
    alembic_tests.test_single_head_revision(alembic_runner)


def test_the_migrations_run(alembic_runner):
    alembic_tests.test_upgrade(alembic_runner)


def test_what_they_build_is_what_the_code_describes(alembic_runner):
    alembic_tests.test_model_definitions_match_ddl(alembic_runner)


def test_each_can_be_taken_back(alembic_runner):
    alembic_tests.test_up_down_consistency(alembic_runner)


def test_alembic_check_finds_nothing_to_do(empty):
    empty.upgrade()
    said = io.StringIO()
    with empty.engine.connect() as connection:
        using = schema.config()
        using.attributes["connection"] = connection
        using.print_stdout = lambda line, *args: said.write(line % args)
        command.check(using)
    assert "No new upgrade operations" in said.getvalue()


def test_the_checks_hold_what_no_reflection_compares(database):
    """Autogenerate does not see CHECK constraints and SQLite's partial indexes: compare them by name."""
    from store.tables import Base

    with database.engine.connect() as connection:
        found = inspect(connection)
        for table in Base.metadata.sorted_tables:
            checks = {str(item.name) for item in table.constraints if isinstance(item, CheckConstraint)}
            assert {check["name"] for check in found.get_check_constraints(table.name)} == checks
            assert {index["name"] for index in found.get_indexes(table.name)} >= {str(index.name) for index in table.indexes}


def test_a_database_is_at_head_once_it_is_upgraded(empty):
    if empty.engine.dialect.name == "postgresql":
        assert not empty.at_head()
    empty.upgrade()
    assert empty.at_head()
    empty.upgrade()
    assert empty.at_head()


def test_several_that_start_at_once_upgrade_it_once(empty_url):
    start = threading.Barrier(4)
    failed = []

    def run():
        own = Database(empty_url)
        start.wait()
        try:
            own.upgrade()
            assert own.at_head()
        except Exception as error:
            failed.append(error)
        own.dispose()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_migration_that_fails_leaves_nothing_behind(empty, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_index", refuse, raising=False)
        with pytest.raises(RuntimeError, match="no room"):
            empty.upgrade()
    with empty.engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    empty.upgrade()
    assert empty.at_head()


def test_jobs_survive_an_upgrade_that_finds_nothing_to_do(database, submit):
    job = submit()
    database.upgrade()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == [job.id]


def test_a_table_built_anew_keeps_what_refers_to_it(database, submit, monkeypatch):
    """SQLite alters a table by copying it and dropping the old one; with foreign keys on, that would delete every event."""
    job = submit()

    def add_a_column(connection):
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("jobs", recreate="auto") as batch:
            batch.alter_column("name", nullable=False, existing_type=Text(), server_default="")

    with database.write() as session:
        jobs.get(session, job.id).name = "clothes"
        session.flush()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "upgrade", add_a_column)
        try:
            database.upgrade()
            with database.read() as session:
                assert len(events.read(session, job.id, limit=10)) == 1
        finally:
            patch.setattr(schema, "upgrade", take_it_back)
            database.upgrade()


def take_it_back(connection):
    with Operations(MigrationContext.configure(connection)).batch_alter_table("jobs") as batch:
        batch.alter_column("name", nullable=True, existing_type=Text(), server_default=None)


def test_jobs_survive_the_second_revision_and_its_downgrade(empty, make_spec):
    """0002: what waits, runs and is paused is there after each step, with its log; what is paused waits again."""
    empty.upgrade()
    with empty.write() as session:
        made = [jobs.create(session, spec=make_spec(), plan={})[0].id for _ in range(3)]
        commands.pause(session, made[2], "test")
        lease = leases.claim(session, owner="one", queues=["default"], capacity=Capacity(0, 0, 1), seconds=60).lease
        commands.pause(session, lease.job_id, "test")
    move(empty, "0001")
    states = {made[0]: "running", made[1]: "queued", made[2]: "queued"}
    assert stored(empty) == states
    move(empty, "head")
    assert stored(empty) == states
    with empty.write() as session:
        assert len(events.read(session, made[2], limit=10)) == 2
        assert commands.pending(session, lease) == []
        leases.finish(session, lease, "succeeded")
        again, _ = jobs.create(session, spec=make_spec(), plan={})
        assert again.id == made[2] + 1
        assert jobs.get(session, lease.job_id).ran_seconds > 0


def test_what_is_asked_beside_adjustments_survives_the_fourth_revision_and_its_downgrade(empty, make_spec):
    empty.upgrade()
    with empty.write() as session:
        jobs.create(session, spec=make_spec(), plan={})
        lease = leases.claim(session, owner="one", queues=["default"], capacity=Capacity(0, 0, 1), seconds=60).lease
        adjustments.adjust(session, adjustments.open_job(session, lease.job_id), Adjustment("default", {"lr": 0.5}))
        commands.pause(session, lease.job_id, "test")
    move(empty, "0003")
    move(empty, "head")
    with empty.write() as session:
        assert [(one.id, one.kind) for one in commands.pending(session, lease)] == [(2, "pause")]
        assert adjustments.adjust(session, jobs.get(session, lease.job_id), Adjustment("default", {"lr": 0.5})).id == 3


def move(database, revision):
    engine = engines.engine(database.url, foreign_keys=False, poolclass=NullPool)
    with engine.begin() as connection:
        using = schema.config()
        using.attributes["connection"] = connection
        (command.upgrade if revision == "head" else command.downgrade)(using, revision)


def stored(database):
    with database.engine.connect() as connection:
        return dict(connection.execute(text("SELECT id, state FROM jobs ORDER BY id")).all())
