"""Celery, wrapped once. Its messages only say "there is work": they may be lost, doubled or late."""

from __future__ import annotations

import logging
import signal
from typing import Any

from celery import Celery, signals

from store.hints import broker_options
from store.settings import Settings
from worker import tasks
from worker.runner import Runner

log = logging.getLogger(__name__)


def create_app(settings: Settings, runner: Runner) -> Celery:
    """The Celery app of this worker: early acknowledgement, no results, JSON alone, nothing fetched ahead, no remote control."""
    app = Celery("graft", set_as_current=False)
    app.conf.update(broker_options(settings.broker))
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_track_started=False,
        task_default_queue=settings.queues[0],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not settings.broker.startswith("filesystem:"),  # only Redis knows it; no other prefetches much
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    tasks.register(app, runner)
    return app


def serve(app: Celery, runner: Runner) -> None:
    """Take messages until SIGTERM, SIGINT or SIGHUP; running jobs are given back then."""

    def stop(**_: Any) -> None:
        runner.stop.set()

    def ready(**_: Any) -> None:
        # A terminal that closes stops us too; Celery would start itself anew.
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))

    signals.worker_shutting_down.connect(stop, weak=False)
    signals.worker_ready.connect(ready, weak=False)

    settings = runner.settings
    worker = app.Worker(
        hostname=f"graft@{settings.worker_name}",
        pool="threads",
        concurrency=max(1, len(runner.devices.gpus) + runner.devices.cpu_slots),
        queues=settings.queues,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()
    log.info("stopped")
