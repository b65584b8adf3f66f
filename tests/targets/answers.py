"""Functions that tests call in a child of the sandbox."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]


class Fault(NamedTuple):
    pointer: str
    message: str


class RefusalError(ValueError):
    faults = (Fault("/model/name", "there is no such model"), Fault("/loss", "nor such a loss"))


def echo(payload: Json) -> Json:
    return {"echo": payload}


def environment(_: Json) -> Json:
    return {"python": dict(os.environ), "kernel": Path("/proc/self/environ").read_text()}


def circumstances(_: Json) -> Json:
    return {
        "modules": sorted(sys.modules),
        "descriptors": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()),
        "leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "interrupt_ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "core_limit": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "cuda": sys.modules["torch"].cuda.is_initialized(),
        "cwd": str(Path.cwd()),
        "forkserver_threads": len(list(Path(f"/proc/{os.getppid()}/task").iterdir())),
        "threads": sys.modules["torch"].get_num_threads(),
    }


def draw(_: Json) -> Json:
    import numpy as np
    import torch

    return {"random": random.random(), "numpy": float(np.random.rand()), "torch": float(torch.rand(()))}


def refuse(_: Json) -> Json:
    raise RefusalError


def fail(_: Json) -> Json:
    print("on the way")
    raise KeyError("missing")


def segfault(_: Json) -> Json:
    print("before the end")
    ctypes.string_at(0)
    return {}


def leave(_: Json) -> Json:
    os._exit(3)


def sleep(payload: Json) -> Json:
    time.sleep(payload["seconds"])
    return {}


def sleep_with_a_helper(payload: Json) -> Json:
    helper = subprocess.Popen(["sleep", "60"])
    Path(payload["tell"]).write_text(str(helper.pid))
    time.sleep(60)
    return {}


def allocate(payload: Json) -> Json:
    return {"bytes": len(bytearray(payload["bytes"]))}


def write(payload: Json) -> Json:
    Path(payload["path"]).write_bytes(bytes(payload["bytes"]))
    return {}


def chatter(payload: Json) -> Json:
    for number in range(payload["lines"]):
        print('{"result": {"forged": true}}', number)
        os.write(2, b"and on the other stream\n")
    return {"lines": payload["lines"]}


def converse(channel: Any) -> None:
    while (message := channel.receive()) is not None:
        channel.send({"heard": message})
