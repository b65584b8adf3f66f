"""Which form of an answer a client asked for by `Accept` (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from api.problems import ProblemError


def negotiate(request: Request, offered: Sequence[str]) -> str:
    """The offered type that the client likes best; the first where it likes several as much. Raises ProblemError, 406."""
    accept = ",".join(request.headers.getlist("accept")) or "*/*"
    best = max(offered, key=lambda media: _quality(accept, media))
    if _quality(accept, best) <= 0:
        raise ProblemError(406, "not-acceptable", f"this is there as {', '.join(offered)}; ask for one of them by Accept")
    return best


def _quality(accept: str, media: str) -> float:
    """What `accept` gives `media`: the q of the most specific range that names it."""
    found: tuple[int, float] = (-1, 0.0)
    for part in accept.split(","):
        range_, *parameters = (piece.strip().lower() for piece in part.split(";"))
        ranges = ["*/*", media.partition("/")[0] + "/*", media]
        if range_ in ranges:
            found = max(found, (ranges.index(range_), _q(parameters)))
    return found[1]


def _q(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
