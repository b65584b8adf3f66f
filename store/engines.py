"""How a connection is made: the one place that knows which database it is."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

SQLITE_NEEDS = (3, 35, 0)
"""The first SQLite that has UPDATE … RETURNING."""
BUSY_SECONDS = 30
"""How long SQLite waits for another writer."""
IDLE_SECONDS = 20
"""How long PostgreSQL waits for a transaction whose client says nothing. A host that froze or vanished inside one holds its job's
row locked: nobody could take the job over, nor cancel it."""
NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A PostgreSQL that vanished without a word is noticed within half a minute, not after the two hours of TCP."""
AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""What is raised while the database is away, locked or full: the same call may succeed later."""
WRITES = "graft_writes"
"""The execution option of connections whose transactions write."""


def reason(error: Exception) -> str:
    """What the driver said, in one line."""
    said = str(error.orig if isinstance(error, DBAPIError) else error)
    return said.strip().partition("\n")[0]


def parse(url: str) -> URL:
    """The URL with our driver in it. Raises ValueError for a database that Graft does not run on."""
    parsed = make_url(url)
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError(f"'{backend}' is no database that Graft runs on; use sqlite:///PATH or postgresql://USER@HOST/NAME")
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLite in memory cannot be shared between processes; name a file: sqlite:///PATH")
    return parsed


def engine(url: str, *, foreign_keys: bool = True, poolclass: type[Pool] | None = None) -> Engine:
    """An engine with our settings. `foreign_keys=False` is for migrations: see `Database.upgrade`."""
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, foreign_keys=foreign_keys, poolclass=poolclass)
    return _postgresql(parsed, poolclass=poolclass)


def _postgresql(url: URL, *, poolclass: type[Pool] | None) -> Engine:
    """What the URL says for itself (`?connect_timeout=3`, `?options=-c …`) counts more than our defaults."""
    own = url.query.get("options", "")
    own = own if isinstance(own, str) else " ".join(own)
    network = {name: value for name, value in NETWORK.items() if name not in url.query}
    made = create_engine(
        url,
        connect_args={"options": f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s {own}", **network},
        isolation_level="READ COMMITTED",  # conditional updates rely on it: they look again at the row they waited for
        pool_pre_ping=True,
        poolclass=poolclass,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(made, "handle_error")
    def _name(context: ExceptionContext) -> BaseException | None:
        """A session that the server has ended is a database that is away, whatever the driver calls it."""
        error = context.sqlalchemy_exception
        if not context.is_disconnect or error is None or isinstance(error, AWAY):
            return None
        return OperationalError(context.statement, context.parameters, context.original_exception, connection_invalidated=True)

    return made


def _sqlite(url: URL, *, foreign_keys: bool, poolclass: type[Pool] | None) -> Engine:
    if sqlite3.sqlite_version_info < SQLITE_NEEDS:
        needs = ".".join(map(str, SQLITE_NEEDS))
        raise RuntimeError(f"SQLite {sqlite3.sqlite_version} is too old; Graft needs {needs} (a newer Python has it)")
    made = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=poolclass,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(made, "connect")
    def _connect(connection: DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None  # the driver shall not begin transactions by itself: it loses updates
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.close()

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        # a deferred transaction that reads and then writes fails when another wrote in between, whatever the timeout
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made


def _write_ahead(cursor: DBAPICursor) -> None:
    """Switch to write-ahead logging. The first switch of a new file fails at once, timeout or not, while another is at it."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()
