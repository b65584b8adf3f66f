from __future__ import annotations

import warnings
from typing import Any

import pytest

from core.errors import SpecError
from core.events import EpochData, Iteration
from core.places import Places
from core.plan import plan
from core.spec import JobSpec
from core.training import compiler
from core.training.job import fit

TWO_LAYERS = """
from torch import nn


class Two(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, num_classes))
"""


def spec(**training):
    body = {"dataset": {"source": "sklearn:digits", "image_size": 32}, "model": {"name": "torchvision:resnet18"}}
    return JobSpec.model_validate({**body, "training": training})


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without a compiler; the folder where programs are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def program(folder, name):
    (folder / name).touch(mode=0o755)


def test_compilation_is_refused_where_there_is_no_compiler_with_both_ways_out(bare):
    (fault,) = compiler.check(spec(compile=True).training)
    assert fault.pointer == "/training/compile"
    assert "no g++ here; install g++ on the hosts of the api and the workers, or set this to false" in fault.message
    assert list(compiler.check(spec().training)) == []


@pytest.mark.parametrize(
    ("named", "there", "works"), [(None, "g++", True), ("clang++", "clang++", True), ("clang++", "g++", False)]
)
def test_the_compiler_is_the_one_that_torch_looks_for(bare, monkeypatch, named, there, works):
    if named:
        monkeypatch.setenv("CXX", named)
    program(bare, there)
    assert (list(compiler.check(spec(compile=True).training)) == []) == works


def test_a_plan_says_so_beside_its_other_faults(bare, tmp_path):
    wrong = spec(compile=True).model_copy(update={"optimizer": spec().optimizer.model_copy(update={"name": "Adan"})})
    with pytest.raises(SpecError) as refused:
        plan(wrong, Places(inputs=tmp_path, cache=tmp_path))
    assert {"/training/compile", "/optimizer/name"} <= {fault.pointer for fault in refused.value.faults}


@pytest.mark.timeout(600)
@pytest.mark.compiles  # g++ compiles a forward and a backward pass: nothing less tells that it trains as the plain model
def test_a_compiled_model_trains_as_the_plain_one_within_rounding(tiny_spec, places, tmp_path):
    with warnings.catch_warnings(action="ignore"):  # the compiler's imports
        from torch._dynamo.utils import counters
        from torch._inductor import config
        from torch._inductor.utils import fresh_cache

    (tmp_path / "graft_two.py").write_text(TWO_LAYERS)
    places = places.model_copy(update={"plugins": ("graft_two",), "plugins_dir": tmp_path})

    def story(compiled: bool) -> tuple[list[float], dict[str, Any]]:
        spec = tiny_spec(
            model={"name": "python:graft_two:Two"},
            loader={"batch_size": 200, "drop_last": True},  # one shape: one compilation
            training={"compile": compiled, "epochs": 2, "accumulate": 2, "ema": 0.9},
        )
        events = list(fit(spec, places, tmp_path / str(compiled)))
        assert ("compiled" in events[1][1].runs) == compiled
        figures = [event[1].validation for event in events if isinstance(event[1], EpochData)]
        return [event.loss for event in events if isinstance(event, Iteration)], figures[-1]

    counters.clear()
    # Each run in a cache of its own, and in this process alone: nothing that was left by another one tells in it.
    with fresh_cache(), config.patch(compile_threads=1), warnings.catch_warnings(action="ignore"):
        losses, figures = story(True)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 2, "forward and backward, each once"
    plain, expected = story(False)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert figures == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
