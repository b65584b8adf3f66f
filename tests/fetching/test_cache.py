"""Fetching into the cache: cut, damaged, slow, at once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from core.errors import TransferError
from core.places import PinnedWeights, Places
from fetching.cache import StoppedError, Watch, fetch
from fetching.policy import Policy

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(inputs=tmp_path / "inputs", cache=tmp_path / "cache")


@pytest.fixture
def policy(elsewhere: Any) -> Policy:
    return Policy(download=True, hosts=(elsewhere.host,), private=True, max_bytes=10_000_000)


@pytest.fixture
def wanted(elsewhere: Any) -> PinnedWeights:
    return PinnedWeights(file="w.pth", sha256=SHA256, url=elsewhere.url("/w.pth"))


def watch(lines: list[str] | None = None) -> Watch:
    return Watch(say=(lines if lines is not None else []).append, first_pause=0.01)


def left(places: Places) -> list[str]:
    return sorted(path.name for path in places.weights_cache.iterdir())


def test_a_file_is_kept_under_its_hash_and_asked_for_once(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    elsewhere.file("/w.pth", CONTENT)
    seen = []
    told = watch()
    told.progress = lambda done, total: seen.append((done, total))
    path = fetch(wanted, places, policy, told)
    assert path.name == f"{SHA256}.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(wanted, places, policy, watch()) == path
    assert len(elsewhere.asked) == 1
    assert left(places) == [path.name]


def test_a_cut_connection_goes_on_where_it_was(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    elsewhere.cut("/w.pth", CONTENT, after=1_000_000, times=2)
    lines: list[str] = []
    assert fetch(wanted, places, policy, watch(lines)).read_bytes() == CONTENT
    ranges = [headers.get("Range") for _, headers in elsewhere.asked]
    assert ranges[0] is None
    assert [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges[1:]] == sorted({1_000_000, 2_000_000})
    assert "trying again" in lines[0]


def test_a_later_job_goes_on_where_an_earlier_one_was_stopped(
    elsewhere: Any, places: Places, policy: Policy, wanted: Any
) -> None:
    begun = threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun)
    one = watch()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            fetch(wanted, places, policy, one)
        except StoppedError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    half = threading.Event()
    one.progress = lambda done, _total: half.set() if done == len(CONTENT) // 2 else None
    thread.start()
    assert begun.wait(30)
    assert half.wait(30)
    one.stop()
    thread.join(30)
    assert raised
    assert left(places) == [f".{SHA256}.pth.part"]
    elsewhere.file("/w.pth", CONTENT)
    assert fetch(wanted, places, policy, watch()).read_bytes() == CONTENT
    assert elsewhere.asked[-1][1]["Range"] == f"bytes={len(CONTENT) // 2}-"


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    elsewhere: Any, places: Places, policy: Policy, wanted: Any
) -> None:
    elsewhere.status("/w.pth", 503)
    with pytest.raises(TransferError, match="the server answered 503"):
        fetch(wanted, places, policy, watch())
    assert len(elsewhere.asked) == 4
    elsewhere.status("/w.pth", 403)
    with pytest.raises(TransferError, match="answered 403 Forbidden") as failed:
        fetch(wanted, places, policy, watch())
    assert len(elsewhere.asked) == 5
    assert "inputs directory" in failed.value.hint


def hurried(policy: Policy) -> Policy:
    """As `policy`, with a least rate that is looked at soon; the head of an answer alone does not keep up with it."""
    return dataclasses.replace(policy, min_rate=1000, rate_seconds=0.5)


def test_a_server_that_trickles_is_asked_again_and_then_given_up(
    elsewhere: Any, places: Places, policy: Policy, wanted: Any
) -> None:
    elsewhere.trickle("/w.pth", CONTENT)
    lines: list[str] = []
    with pytest.raises(TransferError, match=r"bytes a second, and at least 1000 are asked for \(GRAFT_DOWNLOAD_MIN_RATE\)"):
        fetch(wanted, places, hurried(policy), watch(lines))
    assert len(elsewhere.asked) == 4
    assert ["trying again" in line for line in lines] == [True, True, True]
    firsts = [int(headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-")) for _, headers in elsewhere.asked]
    assert firsts == sorted(firsts)
    assert firsts[-1] > 0, "each goes on where the one before it was given up"


def test_a_server_that_trickled_and_is_fast_again_goes_on_where_it_was(
    elsewhere: Any, places: Places, policy: Policy, wanted: Any
) -> None:
    elsewhere.trickle("/w.pth", CONTENT, times=1)
    assert fetch(wanted, places, hurried(policy), watch()).read_bytes() == CONTENT
    assert int(elsewhere.asked[-1][1]["Range"].removeprefix("bytes=").rstrip("-")) > 0


def test_what_comes_slowly_but_fast_enough_is_waited_for(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    elsewhere.trickle("/w.pth", CONTENT, piece=200_000, pause=0.05)
    patient = dataclasses.replace(policy, min_rate=10, rate_seconds=0.2)
    assert fetch(wanted, places, patient, watch()).read_bytes() == CONTENT
    assert len(elsewhere.asked) == 1


def test_headers_that_trickle_are_given_up_too(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    def answer(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not elsewhere.closing.wait(0.02):
            handler.wfile.write(b"x")

    elsewhere.answers["/w.pth"] = answer
    with pytest.raises(TransferError, match="GRAFT_DOWNLOAD_MIN_RATE"):
        fetch(wanted, places, hurried(policy), watch())


def test_another_hash_is_refused_and_nothing_of_it_stays(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    sha256 = elsewhere.file("/w.pth", b"something else")
    with pytest.raises(TransferError, match=f"sent w.pth with the SHA-256 {sha256}, and not {SHA256}"):
        fetch(wanted, places, policy, watch())
    assert not (places.weights_cache / f"{SHA256}.pth").exists()
    elsewhere.file("/w.pth", CONTENT)
    assert fetch(wanted, places, policy, watch()).read_bytes() == CONTENT


def test_what_an_earlier_try_left_is_not_trusted(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    elsewhere.file("/w.pth", CONTENT)
    places.weights_cache.mkdir(parents=True)
    (places.weights_cache / f".{SHA256}.pth.part").write_bytes(b"\0" * 1000)
    assert fetch(wanted, places, policy, watch()).read_bytes() == CONTENT


def test_a_file_that_is_too_large_is_not_read(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    elsewhere.file("/w.pth", CONTENT)
    small = Policy(download=True, hosts=policy.hosts, private=True, max_bytes=2_999_999)
    with pytest.raises(TransferError, match="GRAFT_DOWNLOAD_MAX_BYTES"):
        fetch(wanted, places, small, watch())


def test_a_damaged_file_of_the_cache_is_fetched_again_and_so_is_one_that_was_deleted(
    elsewhere: Any, places: Places, policy: Policy, wanted: Any
) -> None:
    elsewhere.file("/w.pth", CONTENT)
    path = fetch(wanted, places, policy, watch())
    path.write_bytes(b"damaged")
    assert fetch(wanted, places, policy, watch()).read_bytes() == CONTENT
    path.unlink()
    assert fetch(wanted, places, policy, watch()).read_bytes() == CONTENT
    assert len(elsewhere.asked) == 3


def test_a_file_whose_hash_is_known_by_its_name_alone_is_found_by_its_url(elsewhere: Any, places: Places, policy: Policy) -> None:
    official = PinnedWeights(file="w-x.pth", sha256_begins=SHA256[:8], url=elsewhere.url("/w.pth"))
    elsewhere.file("/w.pth", CONTENT)
    path = fetch(official, places, policy, watch())
    assert path.name == f"{SHA256}.pth"
    found = places.find(official)
    assert found is not None
    assert found.resolve() == path
    assert fetch(official, places, policy, watch()) == path
    path.unlink()
    assert places.find(official) is None
    fetch(official, places, policy, watch())
    assert len(elsewhere.asked) == 2
    elsewhere.file("/w.pth", b"other")
    path.unlink()
    with pytest.raises(TransferError, match=f"not {SHA256[:8]}…"):
        fetch(official, places, policy, watch())


def test_of_many_workers_that_want_one_file_one_fetches_it(elsewhere: Any, places: Places, policy: Policy, wanted: Any) -> None:
    """Each opens the file by itself, and so has a lock of its own, as processes have."""
    begun, go_on = threading.Event(), threading.Event()
    elsewhere.slow("/w.pth", CONTENT, begun, go_on)
    waits: queue.Queue[str] = queue.Queue()
    ends: queue.Queue[str] = queue.Queue()

    def run() -> None:
        told = Watch(say=lambda line: waits.put(line) if "already" in line else None)
        ends.put(str(fetch(wanted, places, policy, told)))

    workers = [threading.Thread(target=run) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert begun.wait(30)
    assert [waits.get(timeout=30) for _ in range(2)]
    go_on.set()
    assert {ends.get(timeout=30) for _ in workers} == {str(places.weights_cache / f"{SHA256}.pth")}
    for worker in workers:
        worker.join(30)
    assert len(elsewhere.asked) == 1
    assert left(places) == [f"{SHA256}.pth"]
