"""GPUs and CPU slots of a host."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from store.leases import Capacity, Claim, Lease
from store.settings import Settings
from worker.devices import Devices, Slot, devices_or_exit, find_gpus


def claim_of(gpus: int) -> Claim:
    return Claim(Lease(1, 1, "w", 60), {}, gpus, {})


def test_the_setting_names_the_gpus() -> None:
    assert find_gpus("0, 2") == ["0", "2"]
    assert find_gpus("") == []
    assert find_gpus("cpu,cpu") == ["cpu", "cpu"]


def test_auto_obeys_what_the_worker_itself_may_see() -> None:
    assert find_gpus("auto", {"CUDA_VISIBLE_DEVICES": "3,GPU-abc"}) == ["3", "GPU-abc"]
    assert find_gpus("auto", {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert find_gpus("auto", {"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_auto_counts_the_gpus_that_nvidia_smi_lists_and_no_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g.5gb Device 0: (UUID: y)'\necho 'GPU 1: B (UUID: z)'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")

    assert find_gpus("auto", {}) == ["0", "1"]


NVIDIA_SMI = """#!/bin/sh
echo 'GPU 0: A (UUID: GPU-aaa-1)'
echo '  MIG 1g.5gb Device 0: (UUID: MIG-bbb)'
echo 'GPU 1: B (UUID: GPU-ccc)'
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("setting", ["0,1", "1", "GPU-aaa", "MIG-bbb", "", "cpu,cpu", "auto"])
def test_gpus_that_the_driver_shows_are_taken_by_index_and_by_uuid(setting: str) -> None:
    devices_or_exit(Settings(gpus=setting))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("setting", "named"), [("1,2", "index 2"), ("GPU-b", "'GPU-b'"), ("-1", "'-1'")])
def test_a_gpu_that_is_not_there_is_refused_at_the_start(setting: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(os.EX_CONFIG)):
        devices_or_exit(Settings(gpus=setting))
    said = capsys.readouterr().err
    assert f"GRAFT_GPUS={setting}: " in said
    assert named in said
    assert "indices 0, 1; for none leave it empty" in said


def test_a_job_gets_what_it_needs_and_gives_it_back() -> None:
    devices = Devices(["0", "1"], cpu_slots=1)

    assert devices.take(lambda _: claim_of(1))[1] == Slot(("0",))
    second = devices.take(lambda _: claim_of(1))[1]
    assert devices.take(lambda _: claim_of(0))[1] == Slot()
    assert devices.take(lambda _: claim_of(1)) is None  # nothing is free: nobody is asked
    devices.give(second)
    assert devices.describe() == {"gpus": ["0", "1"], "cpu_slots": 1, "gpus_free": 1, "cpu_free": 0}


def test_a_gpu_that_is_taken_out_is_given_to_nobody_and_its_jobs_do_not_go_to_the_cpu() -> None:
    devices, told = Devices(["0", "1"], cpu_slots=1), []

    def claim(capacity: Capacity) -> None:
        told.append((capacity.gpus_free, capacity.gpus))

    for _ in range(2):
        taken = devices.take(lambda _: claim_of(1))
        assert taken is not None
        devices.take_out(taken[1])
        devices.take(claim)

    assert told == [(1, 1), (0, 1)]
    assert devices.idle
    assert devices.describe() == {"gpus": [], "gpus_out": ["0", "1"], "cpu_slots": 1, "gpus_free": 0, "cpu_free": 1}


def test_nothing_is_taken_when_no_job_fits() -> None:
    devices = Devices(["0"], cpu_slots=1)

    assert devices.take(lambda _: None) is None
    assert devices.describe()["gpus_free"] == 1


def test_a_child_sees_its_own_gpu_as_the_first_and_a_cpu_job_sees_none() -> None:
    assert Slot(("3",)).environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert Slot(("3",)).environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "by the numbers of nvidia-smi"
    assert Slot(("3", "5")).devices == ["cuda:0", "cuda:1"]
    assert Slot(("cpu", "cpu")).environment["CUDA_VISIBLE_DEVICES"] == ""
    assert Slot(("cpu", "cpu")).devices == ["cpu", "cpu"]
    assert Slot().environment["CUDA_VISIBLE_DEVICES"] == ""
    assert Slot().devices == ["cpu"]


def test_two_threads_never_count_on_the_same_slot() -> None:
    devices, told = Devices([], cpu_slots=4), []

    def claim(capacity: Capacity) -> Claim:
        told.append(capacity.cpu_free)
        return claim_of(0)

    threads = [threading.Thread(target=devices.take, args=(claim,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(told) == [1, 2, 3, 4]
