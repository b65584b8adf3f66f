"""Whether somebody is there who could run a job: what a plan warns of, and a job that waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from store.capacity import Capacity

Served = Mapping[str, Collection[Capacity]]
"""Of each queue, what its workers have: `store.workers.capacities`."""


def unserved(queue: str, gpus: int | None, served: Served) -> list[str]:
    """Why a job of this queue that asks for so many GPUs waits until another worker comes; empty where one is there."""
    workers = served.get(queue, ())
    if not workers:
        return [f"no living worker serves the queue '{queue}'; start one with GRAFT_QUEUES={queue} (GET /workers)"]
    if any(worker.fits(gpus) for worker in workers):
        return []
    if gpus != 0 and any(worker.gpus > worker.gpus_free for worker in workers):
        return [
            f"the GPUs of the queue '{queue}' are out of use (GET /workers, `gpus_out`); mend them, and start their worker again"
        ]
    if gpus:
        most = max(worker.gpus for worker in workers)
        return [f"no living worker of the queue '{queue}' has {gpus} GPUs, the largest has {most}; it waits for one that has"]
    return [f"no living worker of the queue '{queue}' has a CPU slot (GRAFT_CPU_SLOTS); it waits for one that has"]
