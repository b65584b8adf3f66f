"""The README says what the code does. (Its tour is run in tests/e2e.)"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from client.specs import read_spec
from core.spec import JobSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_the_docs_are_those_of_the_code():
    quote = runpy.run_path(str(ROOT / "docs" / "quote.py"))
    for page in quote["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert quote["filled"](text) == text, "run: python docs/quote.py"


def test_its_explained_spec_is_valid_and_explains_every_key(readme, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    path = tmp_path / "spec.yaml"
    path.write_text(block)
    spec = JobSpec.model_validate(read_spec(str(path)))
    assert spec.optimizer.keywords == {"lr": 1e-4, "weight_decay": 1e-4}
    for part in (spec, spec.dataset, spec.loader, spec.pretrained, spec.schedule, spec.training, spec.checkpoint, spec.resources):
        for key in type(part).model_fields:
            assert re.search(rf"\b{key}:", block), key


def test_every_make_target_that_the_docs_name_is_there():
    named = set()
    for page in ("README.md", "CONTRIBUTING.md"):
        named |= set(re.findall(r"\bmake ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test"} <= named <= targets


def test_the_examples_are_valid_specs():
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        JobSpec.model_validate(read_spec(str(path)))
        assert yaml.safe_load(path.read_text())["name"] == path.stem
