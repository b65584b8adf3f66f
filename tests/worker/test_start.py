"""How a worker begins, before it takes work."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from worker.__main__ import _patiently


def test_a_worker_that_starts_while_the_database_is_away_or_not_at_head_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    refused = OperationalError("SELECT", {}, ConnectionError("connection refused"))
    answers = [refused, refused, "no schema", "no schema", None]

    def begin() -> str | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    _patiently(begin, pause=0)

    assert not answers
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the database does not answer; waiting for it: connection refused", "no schema"]
