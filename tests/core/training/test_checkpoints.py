"""Checkpoints: whole or absent, verified before they are loaded; and a resumed job that is an undisturbed one, bit for bit."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from core import randomness
from core.errors import DiskFullError
from core.events import Iteration, RewoundData
from core.models.build import build_model
from core.prepare import prepare
from core.training import checkpoints
from core.training.checkpoints import CheckpointError, Progress, Tally
from core.training.job import fit
from core.transfer.tensorfile import sha256_of, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12, of fork

CPU = torch.device("cpu")
FILES = ["model.safetensors", "model.json", "state.safetensors", "state.json"]


@pytest.fixture
def job(tiny_spec, places):
    """A job ready to train."""
    return prepare(tiny_spec(), places, CPU)


@pytest.fixture
def story(places):
    """Run a job to its end: its losses by step, its other events by kind, and the bytes of its last weights."""

    def run(spec, directory, **more):
        losses, others = {}, []
        for event in fit(spec, places, directory, **more):
            if isinstance(event, Iteration):
                losses[event.step] = event.loss
            else:
                others.append(event)
        return losses, others, (directory / str(others[-1][0]) / "model.safetensors").read_bytes()

    return run


@pytest.fixture
def shelf(tmp_path):
    """A folder with nothing but checkpoints in it."""
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


def damage(path):
    content = bytearray(path.read_bytes())
    at = content.rfind(b"sha256") if path.suffix == ".json" else len(content) // 2  # what is no JSON any more is told otherwise
    content[at] ^= 1
    path.write_bytes(bytes(content))


# --- resuming --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "Adam"},
        {"name": "SGD", "momentum": 0.9, "lr": 0.05, "groups": [{"params": "5.*", "lr": 0.1}, {"params": "0.*", "freeze": True}]},
        {"name": "RAdam", "lr": 0.01, "groups": [{"params": "*.bias", "weight_decay": 0.1}]},
    ],
    ids=lambda optimizer: optimizer["name"],
)
def test_a_resumed_job_is_an_undisturbed_one_bit_for_bit(tiny_spec, tmp_path, story, optimizer):
    """Weights, running statistics, optimizer, dropout's draws and the order of samples go on as if nothing had happened."""
    spec = tiny_spec(epochs=3, optimizer=optimizer)
    losses, _, weights = story(spec, tmp_path / "whole")
    rest, others, resumed = story(spec, tmp_path / "2", resume=[tmp_path / "whole" / "26"])
    assert others[2] == (26, RewoundData(to_step=26))
    assert min(rest) == 26
    assert rest == {step: loss for step, loss in losses.items() if step >= 26}
    assert resumed == weights


def test_what_a_killed_attempt_left_half_written_is_gone_when_the_next_one_starts(tiny_spec, tmp_path, story):
    story(tiny_spec(), tmp_path / "1")
    (tmp_path / "1/.52.partial").mkdir()
    story(tiny_spec(epochs=2), tmp_path / "2", resume=[tmp_path / "1/26"])
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["26"]


def test_what_was_best_before_is_known_after(tiny_spec, tmp_path, story):
    spec = tiny_spec(epochs=3, optimizer={"name": "SGD", "lr": 1.5})
    _, whole, _ = story(spec, tmp_path / "whole")
    _, resumed, _ = story(spec, tmp_path / "2", resume=[tmp_path / "whole" / "52"])
    assert resumed[-1][1].model_dump() == whole[-1][1].model_dump()


def test_a_finished_job_resumed_has_nothing_left_to_do(tiny_spec, places, tmp_path, story):
    story(tiny_spec(), tmp_path / "job")
    events = list(fit(tiny_spec(), places, tmp_path / "2", resume=[tmp_path / "job" / "26"]))
    assert [data.kind for _, data in events] == ["transfer", "groups", "rewound"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tiny_spec, tmp_path, story, name):
    spec = tiny_spec(epochs=2)
    losses, _, weights = story(spec, tmp_path / "job")
    damage(tmp_path / "job/52" / name)
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "job/52")
    again, others, mended = story(spec, tmp_path / "job", resume=[tmp_path / "job/52", tmp_path / "job/26"])
    assert others[2] == (26, RewoundData(to_step=26))
    ((step, warning),) = [(step, data) for step, data in others if data.kind == "log"]
    assert (step, warning.level) == (26, "warning")
    assert f"passed over a checkpoint: 52/{name} is damaged" in warning.message
    assert again == {step: loss for step, loss in losses.items() if step >= 26}
    assert mended == weights
    assert checkpoints.load(tmp_path / "job/52"), "the damaged one was replaced"


@pytest.mark.parametrize("missing", FILES)
def test_a_checkpoint_without_one_of_its_files_is_none(job, tmp_path, missing):
    checkpoints.save(tmp_path, job, Progress(step=7, epoch=1), {})
    (tmp_path / "7" / missing).unlink()
    with pytest.raises(CheckpointError, match="7 is no whole checkpoint"):
        checkpoints.load(tmp_path / "7")


@pytest.mark.parametrize("candidates", [[], ["nowhere"], ["nowhere/52", "nowhere/26"]])
def test_without_a_sound_checkpoint_a_resumed_job_begins_anew(tiny_spec, tmp_path, story, candidates):
    losses, others, _ = story(tiny_spec(), tmp_path / "job", resume=[tmp_path / name for name in candidates])
    assert others[2] == (0, RewoundData(to_step=0))
    assert [data.level for _, data in others if data.kind == "log"] == ["warning"] * len(candidates)
    assert min(losses) == 0


def test_every_global_generator_goes_on_where_it_was(tmp_path, job):
    torch.randn(3), np.random.standard_normal(3), random.gauss(0, 1)
    checkpoints.save(tmp_path, job, Progress(step=1, epoch=1), {})
    drawn = torch.randn(5).tolist(), np.random.standard_normal(5).tolist(), [random.gauss(0, 1) for _ in range(5)]
    checkpoints.resume([tmp_path / "1"], job.model, job.optimizer)
    assert drawn == (torch.randn(5).tolist(), np.random.standard_normal(5).tolist(), [random.gauss(0, 1) for _ in range(5)])


def test_a_draw_by_key_is_its_own(job):
    before = torch.get_rng_state()
    first, again, other = (torch.randn(4, generator=randomness.generator(*key)) for key in ((1, 2), (1, 2), (2, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is in it -----------------------------------------------------------------------------------------------------------


def test_the_weights_load_into_a_fresh_model_with_the_public_tools(job, tmp_path, places):
    saved = checkpoints.save(tmp_path, job, Progress(step=3, epoch=1), {"top1": 0.5})
    folder = tmp_path / saved.path
    card = json.loads((folder / "model.json").read_text())
    assert card["classes"] == list("0123456789")
    assert card["preprocessing"]["size"] == 8
    assert (card["figures"], card["step"], card["epoch"]) == ({"top1": 0.5}, 3, 1)
    assert card["sha256"]["weights.safetensors"] == saved.sha256 == sha256_of(folder / "model.safetensors")
    assert saved.bytes == sum((folder / name).stat().st_size for name in FILES)
    fresh = build_model(job.spec.model, 10, places)
    fresh.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    for name, tensor in job.model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_tensor_file_is_what_the_library_reads(tmp_path):
    table = torch.randn(3, 4)
    tensors = {
        "tied": table, "again": table, "turned": table.t(), "empty": torch.empty(0, 3), "scalar": torch.tensor(7),
        "half": torch.randn(5).to(torch.bfloat16), "flags": torch.tensor([True, False]),
        "wide": torch.randn(2, dtype=torch.float64),
    }  # fmt: skip
    written = write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
    assert written == (sha256_of(tmp_path / "x.safetensors"), (tmp_path / "x.safetensors").stat().st_size)


def test_state_that_is_no_tensor_is_refused_by_its_name(tmp_path):
    class Noted(nn.Module):
        def get_extra_state(self):
            return {"note": 1}

    with pytest.raises(TypeError, match="'_extra_state' of the model's state is dict"):
        write_tensors(tmp_path / "x", Noted().state_dict(), {})


# --- whole, or not there -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_appears_only_once_it_may(job, shelf):
    seen = []
    checkpoints.save(shelf, job, Progress(step=5, epoch=1), {}, publish=lambda: seen.append((shelf / "5").exists()))
    assert seen == [False]
    assert (shelf / "5").is_dir()


def test_a_publish_that_raises_leaves_nothing(job, shelf):
    def refuse():
        raise PermissionError("the lease is gone")

    with pytest.raises(PermissionError):
        checkpoints.save(shelf, job, Progress(step=5, epoch=1), {}, publish=refuse)
    assert list(shelf.iterdir()) == []


def test_what_a_killed_job_left_is_swept_at_the_next_start(job, shelf):
    (shelf / ".5.partial").mkdir()
    (shelf / ".5.partial/model.safetensors").write_text("half")
    checkpoints.save(shelf, job, Progress(step=4, epoch=1), {})
    checkpoints.clean(shelf)
    assert [path.name for path in shelf.iterdir()] == ["4"]


def in_a_child(action):
    """Run `action` in a forked process, which has torch already; the process."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    return process


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9999])
def test_a_full_disk_is_a_typed_failure_and_leaves_nothing_torn(job, shelf, share):
    """The kernel lets no file grow beyond a share of the largest one: EFBIG, where a full disk says ENOSPC."""
    checkpoints.save(shelf, job, Progress(step=1, epoch=1), {})
    room = int(share * max((shelf / "1" / name).stat().st_size for name in FILES))

    def save_without_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            checkpoints.save(shelf, job, Progress(step=2, epoch=2), {})
        except DiskFullError as error:
            os._exit(33 if "no room for the checkpoint of step 2" in str(error) else 34)
        os._exit(0)

    child = in_a_child(save_without_room)
    child.join(30)
    assert child.exitcode == 33
    assert [path.name for path in shelf.iterdir()] == ["1"]
    assert checkpoints.load(shelf / "1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_each_way_of_the_system_to_say_full_is_the_same_failure(job, shelf, number):
    def full():
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError, match="no room for the checkpoint of step 5"):
        checkpoints.save(shelf, job, Progress(step=5, epoch=1), {}, publish=full)


def test_a_job_killed_while_it_saves_leaves_only_whole_checkpoints(job, shelf):
    """kill -9 at ten moments, spread over the few milliseconds that a save takes."""

    def save_for_ever():
        for step in range(1, 10_000):
            checkpoints.save(shelf / "job", job, Progress(step=step, epoch=step), {})

    torn = 0
    for moment in range(10):
        child = in_a_child(save_for_ever)
        deadline = time.monotonic() + 20
        while not (shelf / "job/2").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moment * 0.0007)
        child.kill()
        child.join()
        whole = [path for path in (shelf / "job").iterdir() if not path.name.startswith(".")]
        torn += any(path.name.startswith(".") for path in (shelf / "job").iterdir())
        assert len(whole) >= 2
        for path in whole:
            checkpoints.load(path)
        checkpoints.clean(shelf / "job")
        assert all(not path.name.startswith(".") for path in (shelf / "job").iterdir())
        shutil.rmtree(shelf / "job")
    assert torn, "no kill fell into a save: this test shows nothing"


def test_a_checkpoint_from_before_the_history_was_kept_is_read() -> None:
    values = asdict(Progress(step=7, epoch=1, best={"loss": 1.0}))
    assert checkpoints._progress({key: value for key, value in values.items() if key != "history"}) == Progress(
        step=7, epoch=1, best={"loss": 1.0}
    )
    heard = Progress(step=7, epoch=1, history=({"loss": "nan", "top1": 0.5},), tally=Tally(1, 2, 3.0))
    assert checkpoints._progress(json.loads(json.dumps(asdict(heard)))) == heard
