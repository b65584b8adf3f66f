"""The GPUs and CPU slots of this host: what is there, and what is free."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from store.leases import Capacity, Claim
from store.settings import Settings
from store.startup import refuse

CPU = "cpu"
"""Also what stands for a GPU in `GRAFT_GPUS` where there is none: jobs of several ranks can be tried so on any machine."""


@dataclass(frozen=True)
class Slot:
    """What one job has of the host: these GPUs, or none and a CPU slot."""

    gpus: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Makes the GPUs of this slot, and no others, visible to its children, by the numbers that nvidia-smi gives them."""
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(gpu for gpu in self.gpus if gpu != CPU),
            "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),  # CUDA's own is by speed
        }

    @property
    def devices(self) -> list[str]:
        """Its devices as the children call them, one for each rank: a child has one of them, and may see all."""
        return [CPU if gpu == CPU else f"cuda:{index}" for index, gpu in enumerate(self.gpus)] or [CPU]


class Devices:
    """The host's slots. Claiming and taking are one step, so that two threads never count on the same one."""

    def __init__(self, gpus: Sequence[str], cpu_slots: int) -> None:
        self.gpus = tuple(gpus)
        self.cpu_slots = cpu_slots
        self._free_gpus = list(self.gpus)
        self._free_cpu = cpu_slots
        self._out: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def take(self, claim: Callable[[Capacity], Claim | None]) -> tuple[Claim, Slot] | None:
        """A job that fits what is free, and its slot; None when nothing is free or nothing fits."""
        with self._lock:
            if not self._free_gpus and not self._free_cpu:
                return None
            # with every GPU out, what would take one still waits for one: on the CPU it might take weeks
            gpus = max(len(self.gpus) - len(self._out), min(1, len(self._out)))
            claimed = claim(Capacity(len(self._free_gpus), gpus, self._free_cpu))
            if claimed is None:
                return None
            if claimed.gpus == 0:
                self._free_cpu -= 1
                return claimed, Slot()
            taken, self._free_gpus = self._free_gpus[: claimed.gpus], self._free_gpus[claimed.gpus :]
            return claimed, Slot(tuple(taken))

    def give(self, slot: Slot) -> None:
        """A job is over: its slot is free."""
        with self._lock:
            if slot.gpus:
                self._free_gpus = sorted([*self._free_gpus, *slot.gpus], key=self.gpus.index)
            else:
                self._free_cpu += 1

    def take_out(self, slot: Slot) -> None:
        """A job is over, and its GPUs cannot be used: nobody gets them any more."""
        with self._lock:
            self._out += slot.gpus

    @property
    def idle(self) -> bool:
        """Whether no job has a slot, nor is about to get one."""
        with self._lock:
            return len(self._free_gpus) + len(self._out) == len(self.gpus) and self._free_cpu == self.cpu_slots

    def describe(self) -> dict[str, object]:
        """For the worker's heartbeat."""
        with self._lock:
            gpus = [gpu for gpu in self.gpus if gpu not in self._out]
            free = {"gpus_free": len(self._free_gpus), "cpu_free": self._free_cpu}
            out = {"gpus_out": list(self._out)} if self._out else {}
        return {"gpus": gpus, **out, "cpu_slots": self.cpu_slots, **free}


def find_devices(settings: Settings) -> Devices:
    """The devices that the settings let this worker use."""
    return Devices(find_gpus(settings.gpus), settings.cpu_slots)


def devices_or_exit(settings: Settings) -> Devices:
    """`find_devices`, for a worker that starts: one that is given GPUs which the driver does not show ends here."""
    devices = find_devices(settings)
    if settings.gpus != "auto" and (missing := _missing(devices.gpus)):
        refuse([_told(settings.gpus, missing)])
    return devices


def _told(setting: str, missing: Sequence[str]) -> str:
    shown = shown_gpus()
    named = " and ".join(f"the GPU with index {gpu}" if gpu.isdecimal() else f"the GPU '{gpu}'" for gpu in missing)
    here = "no GPU is here, or its driver is not" if not shown else f"here are those with the indices {', '.join(shown)}"
    return f"GRAFT_GPUS={setting}: this names {named}, and {here}; for none leave it empty (GRAFT_GPUS=)"


def _missing(gpus: Sequence[str]) -> list[str]:
    """Those that the driver does not show. A UUID is looked for as CUDA does: what it begins with is enough."""
    if not (named := [gpu for gpu in gpus if gpu != CPU]):
        return []
    listed = _listed_gpus()
    uuids = re.findall(r"UUID: ([^)]+)\)", listed or "")
    known = shown_gpus(listed)
    return [gpu for gpu in named if gpu not in known and not any(uuid.startswith(gpu) for uuid in uuids if not gpu.isdecimal())]


def find_gpus(setting: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: those listed, or with `auto` those that the driver shows. Imports no torch.

    `cpu` stands for a GPU where there is none. With `auto`, a CUDA_VISIBLE_DEVICES of the worker itself is obeyed.
    """
    if setting != "auto":
        return _split(setting)
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [] if visible.strip() == "-1" else _split(visible)
    return shown_gpus()


def shown_gpus(listed: str | None = None) -> list[str]:
    """The indices of the GPUs that the driver shows; `listed`: what `nvidia-smi -L` says, where that is known."""
    listed = _listed_gpus() if listed is None else listed
    if listed is not None:
        return [str(index) for index, _ in enumerate(_gpu_lines(listed))]
    driver = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index, _ in enumerate(driver.iterdir())] if driver.is_dir() else []


def _listed_gpus() -> str | None:
    """What `nvidia-smi -L` says; nothing where it fails, None where it is not there."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    try:
        return subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _gpu_lines(text: str) -> list[str]:
    """One a GPU; the lines of MIG slices below it are indented."""
    return [line for line in text.splitlines() if line.startswith("GPU ")]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
