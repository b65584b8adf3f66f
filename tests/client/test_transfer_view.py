"""The transfer report as a person reads it, at two widths."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console, RenderableType
from torchvision.models import resnet152

from client.transfer import quantity, transfer_view
from core.shapes import shapes_of
from core.spec import PretrainedSpec
from core.transfer.entries import Entry, Source
from core.transfer.heads import Head
from core.transfer.weights import plan_transfer

Row = dict[str, Any]
FC = ("fc.weight", "fc.bias")


def drawn(view: RenderableType, width: int = 100) -> str:
    """What a terminal of that width shows, less the spaces at the ends of lines."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    return "\n".join(line.rstrip() for line in lines)


def target(key: str, status: str = "loaded", reason: str | None = None, **rest: Any) -> Row:
    return {"key": key, "status": status, "reason": reason, "cast": None, "adapter": None, **rest}


def source(key: str, status: str = "used", reason: str | None = None) -> Row:
    return {"key": key, "status": status, "reason": reason}


def count(tensors: int, elements: int) -> dict[str, int]:
    return {"tensors": tensors, "elements": elements}


def module(name: str, loaded: tuple[int, int], total: tuple[int, int], adapted: tuple[int, int] = (0, 0)) -> Row:
    return {"module": name, "loaded": count(*loaded), "adapted": count(*adapted), "total": count(*total)}


BLOCKS = [f"layer{layer}.{block}.conv.{word}" for layer in (1, 2) for block in range(3) for word in ("weight", "bias")]


@pytest.fixture
def report() -> Row:
    """A report with something of everything."""
    return {
        "source": "file:resnet/best.pth",
        "format": "torch",
        "sha256": "0123456789abcdef" * 4,
        "loaded_share": 0.8431,
        "totals": {"loaded": count(12, 0), "adapted": count(1, 9408)},
        "source_totals": {"used": count(11, 0), "dropped": count(14, 0), "unexpected": count(1, 0)},
        "modules": [
            module("conv1", (0, 0), (1, 9408), (1, 9408)),
            module("layer1", (6, 215_808), (6, 215_808)),
            module("layer2", (4, 1_000_000), (6, 1_219_584)),
            module("fc", (0, 0), (2, 5130)),
        ],
        "steps": [
            {"kind": "container", "detail": "state_dict", "keys": 26},
            {"kind": "prefix", "detail": "-encoder.", "keys": 26},
            *({"kind": "rename", "detail": f"^block{n} -> layer{n}", "keys": 6} for n in range(1, 7)),
        ],
        "targets": [
            target("conv1.weight", "adapted", "its 1 input channel repeated to 3, times 1/3", adapter="in_channels",
                   source_shape=[64, 1, 7, 7], shape=[64, 3, 7, 7]),
            *(target(key, cast="float16 -> float32") for key in BLOCKS[:6]),
            *(target(key) for key in BLOCKS[6:10]),
            *(target(key, "missing", "not in the source") for key in BLOCKS[10:]),
            target("fc.weight", "reinit", "the head: shape [1000, 512] in the source, [10, 512] here"),
            target("fc.bias", "missing", "not in the source; the head starts anew"),
            target("fc.tied", reason="tied to 'conv1.weight'"),
        ],
        "sources": [
            *(source(key) for key in BLOCKS[:10]),
            *(source(f"layer{key}", "dropped", "by the glob 'layer[34].*'") for key in ("3.a", "3.b", "4.a", "4.b")),
            source("teacher.[bold]", "unexpected", "the model has no entry of that name"),
        ],
    }  # fmt: skip


TOP = """
torch, SHA-256 0123456789abcdef…

names                         changed
container  state_dict              26
prefix     -encoder.               26
rename     ^block1 -> layer1        6
rename     ^block2 -> layer2        6
rename     ^block3 -> layer3        6
rename     and 3 more              18

module  tensors        elements  loaded
conv1    1 of 1  9,408 of 9,408  ━━━━━━━━━━━━ 100.0%
layer1   6 of 6  216 k of 216 k  ━━━━━━━━━━━━ 100.0%
layer2   4 of 6   1 M of 1.22 M  ━━━━━━━━━━── 82.0%
fc       0 of 2      0 of 5,130  ──────────── 0.0%

                           tensors  why
adapted to fit
"""
BOTTOM = """
not in the source
  layer2.2.*                     2
  fc.bias                        1  the head starts anew
loaded under another name
  fc.tied                        1  tied to 'conv1.weight'
of the source, dropped
  layer3-4.*                     4  by the glob 'layer[34].*'
of the source, unexpected
  teacher.[bold]                 1
loaded as another type
  float16 -> float32             6"""
AT_80 = f"""\
11 of 26 tensors of file:resnet/best.pth were loaded, 1 of them adapted: 84.3%
of the model outside its head.{TOP}\
  conv1.weight                   1  in channels: [64, 1, 7, 7] -> [64, 3, 7,
                                    7]; its 1 input channel repeated to 3,
                                    times 1/3
starts anew
  fc.weight                      1  the head: shape [1000, 512] in the source,
                                    [10, 512] here{BOTTOM}"""
AT_120 = f"""\
11 of 26 tensors of file:resnet/best.pth were loaded, 1 of them adapted: 84.3% of the model outside its head.{TOP}\
  conv1.weight                   1  in channels: [64, 1, 7, 7] -> [64, 3, 7, 7]; its 1 input channel repeated to 3,
                                    times 1/3
starts anew
  fc.weight                      1  the head: shape [1000, 512] in the source, [10, 512] here{BOTTOM}"""


@pytest.mark.parametrize(("width", "text"), [(80, AT_80), (120, AT_120)])
def test_the_report_says_what_was_loaded_what_was_done_to_it_and_what_was_left_out_and_why(
    report: Row, width: int, text: str
) -> None:
    assert drawn(transfer_view(report), width) == text


def test_what_follows_from_the_models_windows_is_said_to_be_computed(report: Row) -> None:
    own = {"key": "layer1.index", "buffer": True, "status": "own", "shape": [16], "reason": "the model's own"}
    report["targets"].append(own)
    assert "computed by the model\n  layer1.index                   1  the model's own\n" in drawn(transfer_view(report))


def test_a_report_from_before_there_were_steps_and_adapters_is_shown_too(report: Row) -> None:
    for row in (*report["modules"], *report["targets"]):
        row.pop("adapted", None)
        row.pop("adapter", None)
    del report["steps"], report["totals"]
    assert "4 of 6   1 M of 1.22 M" in drawn(transfer_view(report))


def test_a_model_of_hundreds_of_rows_is_a_few_lines() -> None:
    blocks = [f"blocks.{n}.{layer}.{word}" for n in range(40) for layer in ("qkv", "mlp") for word in ("weight", "bias")]
    modules = [module(f"m{n}", (4, 4), (4, 4)) for n in range(39)] + [module("blocks", (80, 80), (160, 160))]
    report = {
        "source": "x", "loaded_share": 0.5, "source_totals": {"used": count(80, 80)}, "modules": modules, "sources": [],
        "targets": [target(key) if "qkv" in key else target(key, "missing", "not in the source") for key in blocks],
    }  # fmt: skip
    text = drawn(transfer_view(report), 80)
    assert "  blocks.0-39.mlp.*       80\n" in f"{text}\n"
    assert "the 39 others 156 of 156" in " ".join(text.split())
    assert len(text.splitlines()) == 9


def test_the_real_report_of_a_resnet152_is_a_few_lines() -> None:
    model, theirs = (shapes_of(lambda n=n: resnet152(num_classes=n)) for n in (10, 1000))
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("layer4.2.")}
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
    plan = plan_transfer(
        model, Source("file:w.pth", "torch", entries, dict), PretrainedSpec(source="file:w.pth"), Head(frozenset(FC), ("fc",))
    )
    assert len(plan.report.targets) == 932
    text = drawn(transfer_view(plan.report.model_dump(mode="json")), 80)
    assert len(text.splitlines()) <= 30
    for row in ("912 of 914 tensors", "layer3  654 of 654", "layer4.2.conv1-3.weight", "fc.*"):
        assert row in text


def test_where_kinds_are_many_the_rest_is_counted() -> None:
    targets = [target(f"part.{word}.weight", "missing", f"reason {word}") for word in "abcdefghijklmnop"]
    report = {"source": "x", "loaded_share": 0.1, "source_totals": {}, "modules": [], "sources": [], "targets": targets}
    assert "  and 4 more kinds        4  all of them: --json" in drawn(transfer_view(report))


def test_a_module_that_is_all_but_whole_is_not_shown_as_whole() -> None:
    modules = [module("body", (99, 9999), (100, 10000))]
    report = {"source": "x", "loaded_share": 0.9999, "source_totals": {}, "modules": modules, "targets": [], "sources": []}
    assert "━" * 11 + "─" in drawn(transfer_view(report))


def test_from_scratch_is_a_line() -> None:
    assert drawn(transfer_view({"source": None})) == "From scratch: no pretrained weights."


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (25_557_032, "25.6 M"),
        (3 * 10**9, "3 G"),
    ],
)
def test_counts_are_for_people(number: int, shown: str) -> None:
    assert quantity(number) == shown
