"""Which process of `pytest -n` runs what: a file's tests stay together, and so do the files that share one service."""

from __future__ import annotations

from typing import Any

import pytest

SERVICE = "tests/e2e/"
"""One service for all of this folder: each further one imports torch twice."""
LONGEST = (
    SERVICE,
    "tests/deploy/",
    "tests/chaos/",
    "tests/worker/test_process.py",
    "tests/worker/",
    "tests/store/test_machine.py",
)
"""They come first, in this order: whoever begins one of them last has all the others wait for its end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, in the order of the collection."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class ByService(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SERVICE if nodeid.startswith(SERVICE) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which puts those of one long test last
    return ByService(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((place for place, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    if hasattr(config, "workerinput"):
        items.sort(key=rank)
