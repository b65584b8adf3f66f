"""`python -m worker`: a worker for this host, set up by `GRAFT_…` variables. SIGTERM and SIGINT stop it within seconds."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable

from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning

from sandbox import DEFAULT_PRELOAD, Sandbox
from store import leases, workers
from store.database import Database
from store.engines import AWAY, reason
from store.hints import Hints
from store.startup import settings_or_exit
from worker import heartbeat
from worker.app import create_app, serve
from worker.devices import devices_or_exit
from worker.reaper import Reaper
from worker.runner import Runner

_LAST = 10.0
"""Seconds after which a worker whose parent died ends by force."""

log = logging.getLogger("worker")


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Run jobs on this host.")
    parser.add_argument("--with-parent", action="store_true", help="stop when the process that started this one dies")
    arguments = parser.parse_args()
    _log()
    if arguments.with_parent:
        _stop_with(os.getppid())
    settings = settings_or_exit()
    devices = devices_or_exit(settings)
    heartbeat.forget(settings)
    sandbox = Sandbox(import_path=[settings.plugin_path], preload=(*DEFAULT_PRELOAD, "worker.trainer"))
    sandbox.start()
    database = Database(settings.database)
    _patiently(lambda: _begin(database, settings.worker_name))
    runner = Runner(settings, database, sandbox, devices)
    reaper = Reaper(runner, Hints(settings.broker), leave=lambda: os.kill(os.getpid(), signal.SIGTERM))
    app = create_app(settings, runner)
    reaper.start()
    try:
        serve(app, runner)
    finally:
        runner.close()
        sandbox.close()
        reaper.join(5)
        heartbeat.forget(settings)
        _leave(database, settings.worker_name)


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library, level in ("alembic", logging.WARNING), ("celery", logging.WARNING), ("kombu", logging.ERROR):
        logging.getLogger(library).setLevel(level)
    # It warns of root for the sake of pickle, which is off; jobs run in processes of their own either way.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # When the broker is lost it speaks at length of tasks acknowledged late, which there are none of.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


def _patiently(begin: Callable[[], str | None], pause: float = 0.5) -> None:
    """Call `begin` until it says that nothing is missing; a database that does not answer is waited for as well."""
    told = None
    while True:
        try:
            missing = begin()
        except AWAY as error:
            missing = f"the database does not answer; waiting for it: {reason(error)}"
        if missing is None:
            return
        if missing != told:
            log.warning("%s", missing)
        told = missing
        time.sleep(pause)


def _begin(database: Database, name: str) -> str | None:
    """Take back what is ours: a worker of this name has died, or we would not start, and its jobs need not wait for their leases.

    Whoever starts the service migrates the database; the answer is what a worker waits for.
    """
    if not database.at_head():
        return "the database is not at the newest schema; waiting for `python -m store.upgrade`"
    with database.write() as session:
        for job in leases.release(session, name):
            log.info("job %d: taken back from this worker's earlier life", job)
        workers.forget(session, name)  # that it was drained, too
    return None


def _leave(database: Database, name: str) -> None:
    try:
        with database.write() as session:
            workers.forget(session, name)
    except AWAY as error:
        log.warning("the database does not answer, and lists this worker until it is missed: %s", reason(error))
    database.dispose()


def _stop_with(parent: int) -> None:
    if parent == 1:
        sys.exit("worker: the process that started this one is gone already")
    pidfd = os.pidfd_open(parent)

    def watch() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        log.warning("the process that started this worker died; stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST)
        os._exit(1)

    threading.Thread(target=watch, name="graft-parent", daemon=True).start()


if __name__ == "__main__":
    main()
