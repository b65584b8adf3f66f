"""One service for all tests here, started as a user starts it: `graft serve` in a process of its own."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.models import resnet50

from client.http import Client
from client.serve import running_service

Job = dict[str, Any]


@pytest.fixture(scope="session")
def resnet50_weights() -> dict[str, torch.Tensor]:
    """A resnet50 of 1000 classes, as it might have been trained elsewhere."""
    torch.manual_seed(50)
    return resnet50().state_dict()


class Service:
    """`graft serve` on one data directory, which it can be started on again; `url` and `pid` are those of now."""

    def __init__(self, settings: dict[str, str], log: IO[bytes]) -> None:
        self._settings, self._log, self._life = settings, log, ExitStack()
        self.data_dir = Path(settings["GRAFT_DATA_DIR"])

    def start(self) -> None:
        """Returns once it is ready."""
        ready = self._life.enter_context(running_service(self._settings, self._log))
        self.url, self.pid = ready.url, ready.pid

    def interrupt(self) -> int:
        """Ctrl-C: a terminal sends SIGINT to the whole process group that it has in the foreground. The exit status."""
        os.killpg(self.pid, signal.SIGINT)
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.stop()
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stop(self) -> None:
        self._life.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, resnet50_weights: dict[str, torch.Tensor]) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    inputs = directory / "inputs"
    _write_fashion(inputs / "fashion-mnist")
    _write_few(inputs / "few")
    torch.save(resnet50_weights, inputs / "resnet50.pth")
    settings = {
        "GRAFT_DATA_DIR": str(directory),
        "GRAFT_PLUGINS": "people,two_scales",
        "GRAFT_STOP_SECONDS": "60",  # a loaded machine may take longer than ten to write a checkpoint
        "GRAFT_THREADS": "1",  # two threads wait for each other at each small step when the machine has else to do
        "GRAFT_PLUGINS_DIR": str(_collect_plugins(directory / "plugins")),
    }
    with (directory / "service.log").open("wb") as log:
        made = Service(settings, log)
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


@pytest.fixture
def spec() -> Callable[..., Job]:
    """A small job, `spec("people:Tiny", training={"epochs": 2})`."""

    def make(model: str = "people:Tiny", keywords: Job | None = None, **parts: Job) -> Job:
        name = model if ":" not in model or model.startswith("torchvision:") else f"python:{model}"
        small = {"dataset": {"source": "sklearn:digits"}, "loader": {"batch_size": 64}}
        return {**small, "model": {"name": name, **(keywords or {})}, **parts}

    return make


@pytest.fixture
def run(client: Client) -> Callable[[Job], tuple[Job, list[Job]]]:
    """Submit a spec and follow it to its end: the job, and its events."""

    def run(spec: Job) -> tuple[Job, list[Job]]:
        job = client.submit(spec)
        events = list(client.events(job["id"], follow=True))
        return client.job(job["id"]), events

    return run


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait until a question has an answer that is true; the answer."""

    def until(ask: Callable[[], Any], seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while not (answer := ask()):
            assert time.monotonic() < end, f"not so after {seconds} s"
            time.sleep(0.02)
        return answer

    return until


def _collect_plugins(folder: Path) -> Path:
    """The tests' own modules, and that of examples/."""
    shutil.copytree(Path(__file__).parent / "plugins", folder)
    shutil.copy(Path(__file__).parents[2] / "examples" / "own_model" / "two_scales.py", folder)
    return folder


def _write_few(folder: Path) -> None:
    """Sixty pictures in three class folders: two steps of an epoch."""
    images, labels = load_digits(return_X_y=True)
    for digit in range(3):
        (folder / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(images[labels == digit][:20]):
            Image.fromarray((pixels.reshape(8, 8) * 15).astype("uint8")).save(folder / str(digit) / f"{number}.png")


def _write_fashion(folder: Path) -> None:
    """The digits under Fashion-MNIST's file names: flat `.gz` idx files, as the Debian package lays them."""
    folder.mkdir(parents=True)
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 15.9).astype("uint8").repeat(3, 1).repeat(3, 2)
    for name, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        count = len(labels[part])
        head = struct.pack(">HBBIII", 0, 8, 3, count, 24, 24)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels[part].tobytes(), 1))
        head = struct.pack(">HBBI", 0, 8, 1, count)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels[part].astype("uint8").tobytes(), 1))
