"""What a worker process holds, and the one thing that it does: claim and run jobs until nothing fits."""

from __future__ import annotations

import logging
import socket
import threading
import time

from sandbox import Sandbox, SandboxError
from store import leases, workers
from store.database import Database
from store.engines import AWAY, reason
from store.leases import Capacity, Claim
from store.settings import Settings
from worker import heartbeat
from worker.devices import Devices, Slot, find_devices
from worker.supervisor import Supervisor

_LAST_WORDS = 10.0
"""Seconds beyond the trainers' own for the supervisors to commit what they know."""

log = logging.getLogger(__name__)


class Runner:
    """Claims jobs into free slots and supervises them, from as many threads as call `work`."""

    def __init__(self, settings: Settings, database: Database, sandbox: Sandbox, devices: Devices | None = None) -> None:
        self.settings, self.database, self.sandbox = settings, database, sandbox
        self.devices = devices or find_devices(settings)
        self.stop = threading.Event()
        self._running: set[int] = set()
        self._own: list[threading.Thread] = []
        self._lock = threading.Lock()

    def work(self) -> None:
        """Claim and run, until nothing fits what is free, or the worker stops."""
        while not self.stop.is_set() and self._warm():
            claimed_at = time.monotonic()
            try:
                taken = self.devices.take(self._claim)
            except AWAY as error:
                log.warning("cannot look for work, the next poll will: %s", reason(error))
                return
            if taken is None:
                return
            self._run(*taken, claimed_at)

    def work_aside(self) -> None:
        """`work` in a thread of its own: for work that no message told of."""
        with self._lock:
            self._own = [thread for thread in self._own if thread.is_alive()]
            if len(self._own) >= self.devices.cpu_slots + len(self.devices.gpus):
                return
            thread = threading.Thread(target=self.work, name="graft-work", daemon=True)
            thread.start()
            self._own.append(thread)  # once it runs: `close` joins all that are here

    def beat(self) -> bool:
        """Say that this worker lives, and what it does. True once it shall drain and has nothing left to do."""
        with self._lock:
            running = sorted(self._running)
        ready = self._warm()
        devices = {
            **self.devices.describe(),
            "ready": ready,
        }  # before the database: a claim holds the pool, and then waits for it
        with self.database.write() as session:
            drains = workers.heartbeat(
                session,
                name=self.settings.worker_name,
                host=socket.gethostname(),
                queues=self.settings.queues,
                devices=devices,
                running=running,
            )
        heartbeat.write(self.settings, ready=ready)
        return drains and self.devices.idle  # in this order: who drains claims nothing more

    def close(self) -> None:
        """Stop: running trainers write a checkpoint, or are killed; their jobs go back into the queue uncounted."""
        self.stop.set()
        deadline = time.monotonic() + self.settings.stop_seconds + _LAST_WORDS
        with self._lock:
            own = list(self._own)
        for thread in own:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _claim(self, capacity: Capacity) -> Claim | None:
        settings = self.settings
        with self.database.write() as session:
            return leases.claim(
                session,
                owner=settings.worker_name,
                queues=settings.queues,
                capacity=capacity,
                seconds=settings.lease_seconds,
            )

    def _run(self, claim: Claim, slot: Slot, claimed_at: float) -> None:
        with self._lock:
            self._running.add(claim.lease.job_id)
        log.info("job %d, attempt %d: started on %s", claim.lease.job_id, claim.lease.attempt, ", ".join(slot.devices))
        supervisor = Supervisor(
            claim,
            slot,
            claimed_at=claimed_at,
            database=self.database,
            sandbox=self.sandbox,
            settings=self.settings,
            stop=self.stop,
        )
        try:
            supervisor.run()
        except Exception:
            log.exception("job %d: left until its lease runs out", claim.lease.job_id)
        finally:
            if (fault := supervisor.device_fault) is None:
                self.devices.give(slot)
            else:
                self.devices.take_out(slot)
                log.error("GPU %s is used no more until this worker is started again: %s", ", ".join(slot.gpus), fault)
            with self._lock:
                self._running.discard(claim.lease.job_id)

    def _warm(self) -> bool:
        try:
            return self.sandbox.ready
        except SandboxError:
            return False
