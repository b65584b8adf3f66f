from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import orjson
import pytest
import redis
from kombu import Connection, Exchange, Queue
from kombu.transport import filesystem

from store.hints import TASK, Hints, broker_options


@pytest.fixture
def spool(tmp_path):
    """A broker of files."""
    return f"filesystem://{tmp_path / 'a b' / 'hints'}"


@pytest.mark.parametrize("broker", ["spool", "redis_url"])
def test_a_hint_arrives_and_carries_nothing_but_its_queue(request, broker, receive):
    url = request.getfixturevalue(broker)
    hints = Hints(url)
    assert hints.send("big")
    assert hints.send("big")
    ((task, (args, keywords, _embedded)), second) = receive(url, "big", 2)
    assert (task, args, keywords) == (TASK, [], {})
    assert second[0] == TASK


@pytest.mark.parametrize("broker", ["spool", "redis_url"])
def test_a_hint_goes_to_its_queue_only(request, broker, receive):
    url = request.getfixturevalue(broker)
    assert Hints(url).send("one.with-dots_")
    assert receive(url, "other", 1, seconds=0.5) == []
    assert len(receive(url, "one.with-dots_", 1)) == 1


def test_a_broker_that_is_away_costs_about_a_second_and_raises_nothing(caplog):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        hints = Hints(f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "store.hints"):
            assert hints.send("default") is False
    assert time.monotonic() - began < 15
    assert "no hint for queue default" in caplog.text


def test_a_broker_that_hangs_costs_some_seconds_and_raises_nothing(redis_url):
    hints = Hints(redis_url)
    assert hints.send("of-this-test")
    with redis.from_url(redis_url) as client:
        server = client.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert hints.send("of-this-test") is False
        assert time.monotonic() - began < 12  # the client's own patience, five seconds a try, would make twenty
    finally:
        os.kill(server, signal.SIGCONT)
    assert hints.send("of-this-test")


def test_a_folder_that_cannot_be_written_raises_nothing(tmp_path, caplog):
    hints = Hints(f"filesystem://{tmp_path / 'hints'}")
    for folder in (tmp_path / "hints").iterdir():
        folder.rmdir()
    assert hints.send("default") is False
    assert "no hint" in caplog.text


@pytest.fixture
def torn(spool, monkeypatch):
    """The names of files that some reader could have found half written.

    One looks at any moment; and one looks at the worst of them, when kombu has opened a file and is about to lock and write it.
    """
    options = broker_options(spool)["broker_transport_options"]
    folders = [Path(options["data_folder_in"]), Path(options["control_folder"])]
    found, stop, lock = [], threading.Event(), filesystem.lock

    def look():
        found.extend(file.name for folder in folders for file in folder.glob("*.[me][sx]*") if not whole(file))

    def look_and_lock(*told):
        look()
        lock(*told)

    def keep_looking():
        while not stop.wait(0.001):
            look()

    monkeypatch.setattr(filesystem, "lock", look_and_lock)
    reader = threading.Thread(target=keep_looking)
    reader.start()
    yield found
    stop.set()
    reader.join()


def whole(file):
    try:
        return bool(orjson.loads(file.read_bytes()))
    except FileNotFoundError:  # taken in the meantime
        return True
    except orjson.JSONDecodeError:
        return False


def test_a_reader_never_sees_half_a_message(spool, torn, receive):
    """Kombu's own transport writes a message under its final name: a reader in between takes an empty file and dies of it."""
    hints = Hints(spool)
    for _ in range(30):
        assert hints.send("default")
    assert torn == []
    assert len(receive(spool, "default", 30)) == 30


@pytest.mark.parametrize("broker", ["spool", "redis_url"])
def test_threads_may_send_at_once(request, broker, receive):
    url = request.getfixturevalue(broker)
    hints = Hints(url)
    sent = []
    threads = [threading.Thread(target=lambda: sent.extend(hints.send("many") for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent == [True] * 40
    assert len(receive(url, "many", 40)) == 40


def test_the_table_of_a_new_queue_appears_whole(spool, torn):
    """The first to use a queue writes its table; others that look in the meantime must find all of it or nothing."""
    options = broker_options(spool)
    start = threading.Barrier(3)

    def bind():
        with Connection(
            spool, transport=options["broker_transport"], transport_options=options["broker_transport_options"]
        ) as connection:
            channel = connection.channel()
            for number in range(20):
                start.wait()
                Queue(f"q{number}", Exchange(f"q{number}"), routing_key=f"q{number}", channel=channel).declare()

    threads = [threading.Thread(target=bind) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torn == []
    tables = list(Path(options["broker_transport_options"]["control_folder"]).iterdir())
    assert len(tables) == 20
    assert all(orjson.loads(table.read_bytes()) == [[table.stem, "", table.stem]] for table in tables)
