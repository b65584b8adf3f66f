"""Hints: "there is work on queue Q", by Celery. They may be lost, doubled or late, since the database is the truth."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import Celery

TASK = "graft.work"
"""The task's name; its message carries nothing: the queue that it lies on says it all."""
RETRY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.4}
"""Once more, since the broker may have been started anew since the last hint. One that is away costs a request about a second."""
SEND_SECONDS = 1.0
"""How long a broker may be silent that is sent a hint: one that hangs costs a request some three seconds, no more."""

log = logging.getLogger(__name__)


def broker_options(url: str, silence: float = 5) -> dict[str, Any]:
    """Celery's settings for the broker at `url`, which may be silent for so many seconds when it is asked something.

    `filesystem:///PATH` keeps one file per hint below PATH; any other URL is for Celery as it is (`redis://…`).
    """
    options: dict[str, Any] = {
        "broker_url": url,
        "broker_connection_timeout": 1,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_publish_retry_policy": RETRY,
    }
    scheme, _, path = url.partition("://")
    if scheme == "filesystem":
        messages, control = Path(path) / "messages", Path(path) / "control"
        for folder in (messages, control):
            folder.mkdir(parents=True, exist_ok=True)
        options["broker_url"] = "filesystem://"
        options["broker_transport"] = "store.spool:Transport"
        options["broker_transport_options"] = {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            "polling_interval": 0.1,
        }
    else:
        options["broker_transport_options"] = {
            "socket_connect_timeout": 1,
            "socket_timeout": silence,
            "socket_keepalive": True,
            "health_check_interval": 25,
        }
    return options


class Hints:
    """Sends hints through a broker. Safe to use from several threads."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("graft-hints", set_as_current=False)
        self._app.conf.update(broker_options(broker_url, SEND_SECONDS))

    def send(self, queue: str) -> bool:
        """Tell the workers of `queue` that there is work. Never raises: False, and a line in the log, where it could not."""
        try:
            self._app.send_task(TASK, queue=queue)
        except Exception as error:  # a broker fails in as many ways as it has clients; the job is safe in the database
            log.warning(
                "no hint for queue %s: %s: %s (its workers find the job when they next look)", queue, type(error).__name__, error
            )
            return False
        return True
