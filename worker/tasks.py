"""The one task."""

from __future__ import annotations

from celery import Celery

from store.hints import TASK
from worker.runner import Runner


def register(app: Celery, runner: Runner) -> None:
    """`graft.work`: claim and run jobs until nothing fits. Its message carries nothing, the claim decides."""

    def work() -> None:
        runner.work()

    app.task(name=TASK, ignore_result=True)(work)
