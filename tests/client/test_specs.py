from __future__ import annotations

import io
import json

import pytest

from client.specs import SpecFileError, read_spec


@pytest.fixture
def write(tmp_path):
    def write(text, name="spec.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_json_and_yaml_give_the_same_spec(write):
    spec = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "torchvision:resnet18"}, "optimizer": {"lr": 0.001}}
    yaml = "dataset: {source: sklearn:digits}\nmodel:\n  name: torchvision:resnet18\noptimizer:\n  lr: 1e-3\n"
    assert read_spec(write(json.dumps(spec), "spec.json")) == spec
    assert read_spec(write(yaml)) == spec
    flow = "{dataset: {source: sklearn:digits}, model: {name: torchvision:resnet18}, optimizer: {lr: 1e-3}}"
    assert read_spec(write(flow)) == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 100000.0), (".5", 0.5), ("-2", -2), ("010", 10), ("true", True), ("null", None), ("~", None),
        ("", None),         ("off", "off"), ("yes", "yes"), ("1:30", "1:30"), ("2026-01-31", "2026-01-31"),
        ("job:12", "job:12"), ("'1e-3'", "1e-3"),
        ("0x10", "0x10"), ("1_000", "1_000"), ("fc.*", "fc.*"), ("[1e-3, on]", [0.001, "on"]),
    ],
)  # fmt: skip
def test_yaml_values_are_read_by_the_core_schema_of_yaml_1_2(write, text, value):
    assert read_spec(write(f"key: {text}")) == {"key": value}


def test_a_dash_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"model": {"name": "x"}}'))
    assert read_spec("-") == {"model": {"name": "x"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"lr": 1, "lr": 2}', "'lr' is there twice"),
        ("lr: 1\nlr: 2", "'lr' is there twice"),
        ("a: {1: 2}", "the key 1 is no text"),
        ('{"lr": }', "cannot be read as a spec"),
        ("a: [", "cannot be read as a spec"),
        ("- a\n- b", "holds no job spec"),
        ("", "holds no job spec"),
        (b"\xff\xfe", "no UTF-8 text"),
        ("a: !!python/object:os.system x", "cannot be read as a spec"),
    ],
)
def test_what_cannot_be_a_spec_is_refused_with_its_place(write, text, said):
    path = write(text)
    with pytest.raises(SpecFileError, match=said) as caught:
        read_spec(path)
    assert path in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(SpecFileError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_spec("nowhere.yaml")
