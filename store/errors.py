"""What the store refuses. Each error knows its HTTP status and its slug, so that the api adds nothing."""

from __future__ import annotations


class StoreError(Exception):
    """The base: `status` is the HTTP status, `slug` the last part of the problem's type."""

    status = 500
    slug = "store"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(StoreError):  # noqa: N818  (a status, named as HTTP names it)
    """There is no such thing."""

    status = 404
    slug = "not-found"


class Conflict(StoreError):  # noqa: N818
    """It is there, but its state does not allow this."""

    status = 409
    slug = "conflict"


class LeaseLost(StoreError):  # noqa: N818
    """The job is no longer this worker's attempt: whoever sees this stops, and nothing of it was written."""

    status = 409
    slug = "lease-lost"


class PinLost(Conflict):
    """What a new job needs, a checkpoint or an uploaded dataset, went while the job was being planned."""

    slug = "pin-lost"
