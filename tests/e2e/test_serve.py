"""What `graft serve` starts, keeps alive and takes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.http import Client
from store import jobs
from store.database import Database


def descendants(pid):
    """The processes below `pid`, as {pid: command line}."""
    found = {}
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return found
    for children in (task.split() for task in tasks):
        for child in map(int, children):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found |= descendants(child)
    return found


def running(pids):
    """Those of `pids` that are there and no zombies."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.append(pid)
    return alive


def test_a_worker_that_was_killed_is_started_again_and_its_job_goes_on(service, client, spec, until):
    job = client.submit(spec("people:Slow", loader={"batch_size": 128}, training={"epochs": 20}))
    until(lambda: client.checkpoints(job["id"]))
    (worker,) = [pid for pid, command in descendants(service.pid).items() if " -m worker " in command]
    os.kill(worker, signal.SIGKILL)
    events = list(client.events(job["id"], follow=True))
    ended = client.job(job["id"])
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    (rewound,) = [event["data"]["to_step"] for event in events if event["kind"] == "rewound"]
    assert rewound > 0
    assert rewound % (ended["progress"]["steps"] // 20) == 0  # a checkpoint's step: an epoch's end
    assert len(client.losses(job["id"])["losses"]) == ended["progress"]["steps"]


def test_an_api_that_was_killed_is_started_again_at_its_address_while_the_training_goes_on(service, spec, until):
    notes = []
    with Client(service.url, patience=120, note=notes.append) as client:
        job = client.submit(spec("people:Slow", loader={"batch_size": 128}, training={"epochs": 12}))["id"]
        events = client.events(job, follow=True)
        seen = [next(event for event in events if event["kind"] == "iterations")]
        (api,) = [pid for pid, command in descendants(service.pid).items() if " -m api " in command]
        os.kill(api, signal.SIGKILL)
        seen += events
        assert [event["seq"] for event in seen] == list(range(seen[0]["seq"], seen[-1]["seq"] + 1))
        assert (client.job(job)["state"], client.job(job)["attempt"]) == ("succeeded", 1)
    assert [note.split(";")[0] for note in notes] == [f"The stream from {service.url} was cut", "Connected again"]
    until(lambda: [pid for pid, command in descendants(service.pid).items() if " -m api " in command and pid != api])


@pytest.fixture
def started(tmp_path, until):
    """A `graft serve` that is still starting: the process, and what it has started."""
    command = [sys.executable, "-m", "client", "serve", "--port", "0"]
    environment = {**os.environ, "GRAFT_DATA_DIR": str(tmp_path / "data")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def both():
        commands = descendants(process.pid).values()
        return all(sum(f" -m {name} " in command for command in commands) == 1 for name in ("api", "worker"))

    until(both)
    yield process, list(descendants(process.pid))
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_it_and_all_that_it_started_and_it_says_so(started, number):
    process, children = started
    process.send_signal(number)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 0, output
    assert running(children) == []
    told = " ".join(output.split())
    assert "Stopping: what trains writes a checkpoint and goes back into its queue" in told
    assert told.endswith("Stopped.")
    assert "Traceback" not in output


def test_nothing_outlives_it_when_it_is_killed(started, until):
    process, children = started
    process.kill()
    process.wait()
    until(lambda: running(children) == [], 15)


def test_it_ends_with_an_error_when_the_api_is_gone(started):
    process, children = started
    (api,) = [pid for pid, command in descendants(process.pid).items() if " -m api " in command]
    os.kill(api, signal.SIGKILL)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "the api stopped by itself (signal 9)" in output
    assert running(children) == []


@pytest.mark.slow  # it starts the service anew; the last test here, since `client` knows its address of before
@pytest.mark.timeout(300)
def test_ctrl_c_stops_it_and_its_job_goes_on_at_the_next_start(service, client, spec, until):
    none_by_itself = {"every": {"steps": 1000}, "keep_best": 0}
    job = client.submit(spec("people:Slow", training={"epochs": 12}, checkpoint=none_by_itself))["id"]
    until(lambda: client.job(job)["progress"]["step"])
    assert service.interrupt() == 0
    database = Database(f"sqlite:///{service.data_dir}/graft.db")
    with database.read() as session:
        waiting = jobs.get(session, job)
    database.dispose()
    assert (waiting.state, waiting.attempt, waiting.failures, waiting.lease_owner) == ("queued", 1, 0, None)

    service.start()
    with Client(service.url) as anew:
        events = list(anew.events(job, follow=True))
        ended = anew.job(job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    steps = ended["progress"]["steps"]
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [waiting.step, steps], (
        "where it stood; the end"
    )
    assert [event["data"]["to_step"] for event in events if event["kind"] == "rewound"] == [waiting.step]
    trained = [event["data"] for event in events if event["kind"] == "iterations"]
    assert [step for data in trained for step in range(data["first"], data["first"] + len(data["losses"]))] == list(range(steps))
