from __future__ import annotations

import pytest

from core.errors import SpecError
from core.places import Places
from core.plan import plan
from core.spec import JobSpec
from core.training import compiler


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
