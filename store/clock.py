"""The database's clock: the one clock that leases, times and events are compared by, on however many hosts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Double, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

CLOCK = "clock"
"""The key of `Session.info` under which a test's clock lies."""


class _EpochSeconds(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, read at the moment, not at the start of the transaction."""

    name = "epoch_seconds"
    type = Double()
    inherit_cache = True  # without it every statement with the time in it would be compiled anew


@compiles(_EpochSeconds, "sqlite")
def _sqlite(_element: _EpochSeconds, _compiler: Any, **_options: Any) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42; a Julian day as a double resolves 40 microseconds
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_EpochSeconds, "postgresql")
def _postgresql(_element: _EpochSeconds, _compiler: Any, **_options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


def moment(session: Session) -> ColumnElement[float]:
    """The present, as an SQL expression: for use inside a statement."""
    clock: Callable[[], float] | None = session.info.get(CLOCK)
    return _EpochSeconds() if clock is None else literal(clock(), Double())


def now(session: Session) -> float:
    """The present in epoch seconds, by the database's clock."""
    return session.execute(select(moment(session))).scalar_one()


def iso(at: float) -> str:
    """Epoch seconds as ISO 8601 in UTC, to the millisecond: `2026-01-31T12:00:00.123Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
