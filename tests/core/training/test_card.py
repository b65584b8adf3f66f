"""model.json and weights.safetensors are enough: the lines of docs/weights.md, run as they stand, without a word of Graft."""

import hashlib
import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.models.build import constructor_keywords
from core.prepare import prepare
from core.training import checkpoints
from core.training.job import fit
from core.training.progress import Progress

PAGE = Path(__file__).parents[3] / "docs/weights.md"
MEASURE = """
files = [(path, card["classes"].index(path.parent.name)) for path in sorted(Path("val").glob("*/*"))]
logits, labels = torch.stack([classify(path) for path, _ in files]), torch.tensor([label for _, label in files])
top1 = (logits.argmax(1) == labels).double().mean().item()
measured = {"top1": top1, "loss": torch.nn.functional.cross_entropy(logits, labels).item()}
"""


@pytest.fixture
def pictures(places):
    """Colour and grey, PNG and JPEG, of many sizes and none square: whatever the preprocessing does to them shows."""
    draws = np.random.default_rng(0)
    for number in range(40):
        split, name = ("val" if number < 24 else "train"), ("cats", "dogs")[number % 2]
        folder = places.inputs / "pets" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (40 + number, 95 - number, 3), np.uint8)
        pixels[..., number % 2] //= 4  # cats are of another colour than dogs
        pixels[:, : 10 + number] //= 3  # so that what is cropped is another image
        image = Image.fromarray(pixels).convert("L" if number % 5 == 0 else "RGB")
        image.save(folder / f"{number}.{'png' if number % 3 else 'jpg'}")
    return places.inputs / "pets"


def measured(lines, folder):
    """What the lines of the page measure, beside the files."""
    names = {}
    with chdir(folder):
        exec(f"{lines}\n{MEASURE}", names)  # noqa: S102 - the page's own lines
    return names["measured"]


def test_the_page_s_own_lines_measure_what_the_job_measured(pictures, places, tiny_spec, tmp_path):
    spec = tiny_spec(
        dataset={"source": "folder:pets", "image_size": 32}, model={"name": "torchvision:shufflenet_v2_x0_5"},
        loader={"batch_size": 4, "workers": 0}, optimizer={"name": "SGD", "lr": 0.02}, epochs=8,
    )  # fmt: skip
    for _ in fit(spec, places, tmp_path / "job"):
        pass
    folder = max((tmp_path / "job").iterdir(), key=lambda one: int(one.name))
    shutil.copy(folder / "model.json", pictures)
    shutil.copy(folder / "model.safetensors", pictures / "weights.safetensors")
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    card = json.loads((folder / "model.json").read_text())
    figures = card["figures"]
    assert measured(lines, pictures) == {"top1": figures["top1"], "loss": pytest.approx(figures["loss"], rel=1e-5)}
    for step, left_out in (
        (', antialias=how["antialias"]', ", antialias=False"),
        ("F.center_crop(image, [min(image.shape[-2:])] * 2)", "image"),
    ):
        other = measured(lines.replace(step, left_out), pictures)
        assert other["loss"] != pytest.approx(figures["loss"], rel=1e-3), "each step of the preprocessing shows in the loss"
    assert card["sha256"] == {"weights.safetensors": hashlib.sha256((pictures / "weights.safetensors").read_bytes()).hexdigest()}
    assert card["architecture"] == {"name": "torchvision:shufflenet_v2_x0_5", "num_classes": 2}
    assert (card["epoch"], card["preprocessing"]["mode"]) == (8, "RGB")


def test_a_card_of_grey_images_and_of_a_model_of_one_s_own_says_so(places, tiny_spec, tmp_path, plugins_dir):
    job = prepare(tiny_spec(), places, torch.device("cpu"))
    saved = checkpoints.save(tmp_path, job, Progress(step=3, epoch=1), {})
    card = json.loads((tmp_path / saved.path / "model.json").read_text())
    module = hashlib.sha256((plugins_dir / "graft_tiny.py").read_bytes()).hexdigest()
    assert card["sha256"] == {"weights.safetensors": saved.sha256, "graft_tiny.py": module}
    assert card["architecture"] == {"name": "python:graft_tiny:Tiny", "num_classes": 10}
    assert card["preprocessing"] == {
        "mode": "L", "crop": "central square", "size": 8, "interpolation": "bilinear", "antialias": True, "rounded_to": "uint8",
        "channels": 3, "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip


def test_what_a_library_s_model_is_given_unasked_stands_in_its_card(tiny_spec):
    spec = tiny_spec(model={"name": "torchvision:googlenet", "transform_input": True}).model
    assert constructor_keywords(spec, 3) == {
        "aux_logits": False, "init_weights": True, "transform_input": True, "num_classes": 3,
    }  # fmt: skip
