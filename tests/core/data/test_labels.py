"""A CSV of labels: what it may look like, what is wrong with it and on which line, and a job that trains on it."""

from __future__ import annotations

import os.path
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.data.datasets import Dataset, open_dataset
from core.data.images import DataError, FileImages
from core.data.splits import hold_out
from core.errors import SpecError
from core.events import EpochData, Iteration
from core.places import Places
from core.plan import plan
from core.spec import DatasetSpec, JobSpec
from core.training.checkpoints import load
from core.training.job import fit

Write = Callable[..., Path]


@pytest.fixture
def pets(places: Places) -> Write:
    """Write `folder/labels.csv` of these lines, and empty files for images: the CSV's, or those that are named."""

    def write(*lines: str, files: str = "a.png b.png c.png d.png", name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        folder = places.inputs / "pets"
        for file in files.split():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes("\n".join(lines).encode(encoding))
        return folder

    return write


@pytest.fixture
def opened(places: Places) -> Callable[..., Dataset]:
    def of(**spec: Any) -> Dataset:
        return open_dataset(DatasetSpec(**{"source": "folder:pets", "validation": 0.5, **spec}), places, 0)

    return of


@pytest.fixture
def refused(opened: Callable[..., Dataset]) -> Callable[..., list[tuple[str, str]]]:
    def of(**spec: Any) -> list[tuple[str, str]]:
        with pytest.raises(SpecError) as caught:
            opened(**spec)
        return [(fault.pointer, fault.message) for fault in caught.value.faults]

    return of


Opens = Callable[..., Dataset]
Refused = Callable[..., list[tuple[str, str]]]


def labels_of(dataset: Dataset) -> dict[str, Any]:
    """Every image's, by its name."""
    splits = (dataset.train, dataset.validation)
    return {images.name(index): images.labels[index].tolist() for images in splits for index in range(len(images))}


# --- what is read --------------------------------------------------------------------------------------------------------------

FOUR = {"a.png": None, "b.png": None, "c.png": None, "d.png": None}
READ: dict[str, tuple[list[str], dict[str, Any], str, str, list[Any]]] = {
    "classes": (["file,label", "a.png,dog", "b.png,cat", "c.png,dog", "d.png,cat"], {}, "multiclass", "cat dog", [1, 0, 1, 0]),
    "numbers of classes": (
        ["file,label", "a.png,10", "b.png,9", "c.png,10", "d.png,9"], {}, "multiclass", "9 10", [1, 0, 1, 0],
    ),
    "another name": (
        ["image,species", "a.png,dog", "b.png,cat", "c.png,dog", "d.png,cat"], {}, "multiclass", "cat dog", [1, 0, 1, 0],
    ),
    "the first column is the file": (
        ["what,x", "a.png,1.5", "b.png,2", "c.png,-3e2", "d.png,0"], {}, "regression", "x", [[1.5], [2], [-300], [0]],
    ),
    "a file column elsewhere": (
        ["age,path,height", "1,a.png,2", "3,b.png,4", "5,c.png,6", "7,d.png,8"], {}, "regression", "age height",
        [[1, 2], [3, 4], [5, 6], [7, 8]],
    ),
    "labels in a cell": (
        ["file,labels", "a.png,red; round", "b.png,", "c.png,round", "d.png,red;red"], {}, "multilabel", "red round",
        [[1, 1], [0, 0], [0, 1], [1, 0]],
    ),
    "columns of 0 and 1": (
        ["file,red,round", "a.png,1,1", "b.png,0,0", "c.png,0,1.0", "d.png,True,False"], {}, "multilabel", "red round",
        [[1, 1], [0, 0], [0, 1], [1, 0]],
    ),
    "one column of 0 and 1": (
        ["file,red", "a.png,1", "b.png,0", "c.png,0", "d.png,1"], {"task": "multilabel"}, "multilabel", "red",
        [[1], [0], [0], [1]],
    ),
    "0 and 1 as numbers": (
        ["file,red", "a.png,1", "b.png,0", "c.png,0", "d.png,1"], {"task": "regression"}, "regression", "red",
        [[1], [0], [0], [1]],
    ),
    "0 and 1 as classes": (
        ["file,red", "a.png,1", "b.png,0", "c.png,0", "d.png,1"], {"task": "multiclass"}, "multiclass", "0 1", [1, 0, 0, 1],
    ),
    "one-hot": (
        ["file,cat,dog", "a.png,0,1", "b.png,1,0", "c.png,0,1", "d.png,1,0"], {"task": "multiclass"}, "multiclass", "cat dog",
        [1, 0, 1, 0],
    ),
    "semicolons and quotes": (
        ["file;labels", '"a.png";"red;round"', "b.png;", 'c.png; "round"', "d.png;red"], {}, "multilabel", "red round",
        [[1, 1], [0, 0], [0, 1], [1, 0]],
    ),
    "line ends of old Macs": (
        ["file,labels\ra.png,red;round;red;red\rb.png,;;;\rc.png,round\rd.png,red\r"], {}, "multilabel", "red round",
        [[1, 1], [0, 0], [0, 1], [1, 0]],
    ),
    "tabs": (["file\tlabel", "a.png\tdog", "b.png\tcat", "c.png\tdog", "d.png\tcat"], {}, "multiclass", "cat dog", [1, 0, 1, 0]),
    "an index without a name, and more columns": (
        [",file,label,width", "0,a.png,dog,3", "1,b.png,cat,4", "2,./c.png,dog,x", "3,d.png,cat,", ",,,", ""], {}, "multiclass",
        "cat dog", [1, 0, 1, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_a_csv_says(pets: Write, opened: Opens, case: str) -> None:
    lines, spec, task, classes, labels = READ[case]
    pets(*lines)
    dataset = opened(**spec)
    assert (dataset.task, " ".join(dataset.classes)) == (task, classes)
    assert labels_of(dataset) == dict(zip(FOUR, labels, strict=True))
    assert dataset.train.labels.dtype == (torch.int64 if task == "multiclass" else torch.float32)
    assert dataset.notes[0] == "labels.csv was found in the folder, and says the targets"


def test_a_byte_order_mark_and_the_ends_of_lines_of_windows_do_not_count(pets: Write, opened: Opens) -> None:
    pets("file,label\r", "a.png,Tür\r", "b.png,cat\r", "c.png,Tür\r", "d.png,cat\r", encoding="utf-8-sig")
    assert opened().classes == ("Tür", "cat")


def test_a_split_column_is_kept_and_rows_for_a_test_are_left_out_where_others_validate(pets: Write, opened: Opens) -> None:
    pets("file,label,split", "a.png,x,train", "b.png,y,Training", "c.png,y,test", "d.png,x,val")
    dataset = opened()
    assert [dataset.train.name(i) for i in range(2)] == ["a.png", "b.png"]
    assert [dataset.validation.name(i) for i in range(len(dataset.validation))] == ["d.png"]
    assert "the rows of the split 'test' are left out" in dataset.notes[1]
    pets("file,label,split", "a.png,x,train", "b.png,y,train", "c.png,y,test", "d.png,x,test")
    assert len(opened().validation) == 2


def test_a_class_that_one_split_lacks_is_told(pets: Write, opened: Opens) -> None:
    pets("file,label,split", "a.png,x,train", "b.png,y,train", "c.png,z,val", "d.png,x,val")
    assert opened(labels="labels.csv").notes == (
        "no image of the training split has 'z'",
        "no image of the validation split has 'y'",
    )
    pets("file,label,split", "a.png,x,train", "b.png,x,train", "c.png,x,val", "d.png,y,val")
    assert opened(labels="labels.csv").notes == ("every image of the training split is of the class 'x'",)


def test_images_that_no_row_names_are_told(pets: Write, opened: Opens) -> None:
    pets("file,x", "a.png,0.5", "b.png,1", files="a.png b.png sub/c.png .d.png __MACOSX/e.png notes.txt")
    said = "1 image is not used, for no row of labels.csv names them: 'sub/c.png'"
    assert opened(labels="labels.csv").notes[0] == said


@pytest.mark.parametrize("stored", ["gr\u00fcn.png", "gru\u0308n.png"])
def test_a_name_is_found_in_either_form_of_unicode(pets: Write, opened: Opens, stored: str) -> None:
    for written in ("gr\u00fcn.png", "gru\u0308n.png"):
        pets("file,x", f"{written},0.5", "b.png,1", files=f"{stored} b.png")
        assert set(labels_of(opened())) == {stored, "b.png"}


def test_the_order_of_the_rows_and_repeated_ones_say_nothing(pets: Write, opened: Opens) -> None:
    pets("file,x", "a.png,0.5", "b.png,1", "c.png,2", "d.png,3")
    one = opened(labels="labels.csv")
    pets("file,x", "d.png,3", "b.png,1", "a.png,0.5", "c.png,2", "b.png,1")
    other = opened(labels="labels.csv")
    assert one.fingerprint == other.fingerprint
    assert other.notes == ("1 rows of labels.csv repeat another one, and count once",)
    pets("file,x", "a.png,0.5", "b.png,1", "c.png,2", "d.png,3.5")
    assert opened().fingerprint != one.fingerprint


def test_the_csv_goes_before_class_folders_only_where_it_is_named(pets: Write, opened: Opens) -> None:
    pets("file,labels", "x/a.png,red", "y/b.png,", "x/c.png,red;big", "y/d.png,big", files="x/a.png y/b.png x/c.png y/d.png")
    folders = opened()
    assert (folders.task, folders.classes) == ("multiclass", ("x", "y"))
    assert "labels.csv lies beside the class folders, and is not read" in folders.notes[0]
    assert opened(labels="labels.csv").classes == ("big", "red")


def test_images_in_one_folder_or_in_train_are_no_class_folders(pets: Write, opened: Opens) -> None:
    pets("file,x", "train/a.png,0.5", "train/b.png,1", "val/c.png,2", files="train/a.png train/b.png val/c.png")
    assert opened().task == "regression"


def test_a_corrupt_image_is_named_when_it_is_read(pets: Write, opened: Opens) -> None:
    pets("file,x", "a.png,0.5", "b.png,1")
    with pytest.raises(DataError, match=r"[ab]\.png cannot be read"):
        opened().train.read(0)


# --- what is refused -----------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[list[str], list[str]]] = {
    "several at once": (
        ["file,x,y", "a.png,1.5,0", "nope.png,2,0", "b.png,,0", "c.png,3,5,0", "../d.png,4,0", "/d.png,4,0", "d.png,n,0", ",3,0"],
        [
            "line 3: there is no file 'nope.png'", "line 5: it has 4 cells, but there are 3 columns",
            "line 6: '../d.png' does not lie below the dataset's folder", "line 7: '/d.png' does not lie",
            "line 9: it names no file", "has 2 more faults of this kind",
        ],
    ),
    "a decimal comma": (
        ["file;x;y", "a.png;1,5;0", "b.png;2.5;0"], ["line 2: '1,5' in column 'x' is no number; decimals are written"],
    ),
    "a NUL byte": (["file,label", "a.png,x\0", "b.png,y"], ["line 2: a NUL byte is in it"]),
    "Python's own numbers": (["file,x,y", "a.png,1_000.5,1", "b.png,2,1"], ["line 2: '1_000.5' in column 'x' is no number"]),
    "too large": (["file,x", "a.png,1e99", "b.png,2.5"], ["line 2: '1e99' in column 'x' is no number"]),
    "an empty number": (["file,x,y", "a.png,1,2", "b.png,,3"], ["line 3: its cell of 'x' is empty"]),
    "an empty label": (["file,label", "a.png,", "b.png,x"], ["line 2: its cell of 'label' is empty"]),
    "no ending": (["file,label", "a,x", "b,y"], ["line 2: there is no file 'a'; there is 'a.png'", "line 3: there"]),
    "another label": (["file,label", "a.png,x", "b.png,y", "a.png,y"], ["line 4: 'a.png' has other targets"]),
    "another split": (["file,label,split", "a.png,x,train", "a.png,x,val", "b.png,y,train"], ["line 3: 'a.png' has other"]),
    "a split word": (["file,label,split", "a.png,x,train", "b.png,y,dev"], ["line 3: its split is 'dev'; write train"]),
    "no training": (["file,label,split", "a.png,x,val", "b.png,y,test"], ["no row is of the split 'train'"]),
    "no header": (["a.png,x", "b.png,y"], ["line 1: 'a.png' is a file; a line above it must name the columns"]),
    "nothing": ([""], ["it is empty"]),
    "a header alone": (["file,label"], ["it has a header, and no row below it"]),
    "one column": (["file", "a.png"], ["line 1: it has one column, 'file'"]),
    "no targets": (["file,split", "a.png,train"], ["beside 'file' there is no column with labels or numbers"]),
    "two of a name": (["file,x,X", "a.png,1,2"], ["line 1: two columns are called 'x'"]),
    "no name": ([",x", "a.png,1"], ["line 1: the first column has no name"]),
    "label and labels": (["file,label,labels", "a.png,1,2"], ["line 1: it has a column 'label' and a column 'labels'"]),
    "an open quote": (["file,label", 'a.png,"x', "b.png,y"], ["line 3: unexpected end of data"]),
    "no label at all": (["file,labels", "a.png,", "b.png,;"], ["its column 'labels' names no label at all"]),
    "not numeric": (["file,x,y", "a.png,1,2", "b.png,3,big"], ["line 3: 'big' in column 'y' is no number"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_wrong_with_a_csv_is_told_with_its_line(pets: Write, refused: Refused, case: str) -> None:
    lines, expected = FAULTS[case]
    pets(*lines)
    told = refused(labels="labels.csv")
    assert [pointer for pointer, _ in told] == ["/dataset/labels"] * len(expected)
    for (_, message), said in zip(told, expected, strict=True):
        assert message.startswith("labels.csv")
        assert said in message
    assert refused()[0][0] == "/dataset/source", "where it was found by itself, the spec does not name it"


ASKED = {
    "0 and 1": (["file,red", "a.png,1", "b.png,0"], "its column 'red' has 0 and 1 alone: set multilabel (yes or no), multiclass"),
    "whole numbers": (["file,age", "a.png,31", "b.png,7"], "its column 'age' has whole numbers alone: set regression"),
    "fractions as labels": (["file,label", "a.png,3.5", "b.png,7"], "its column 'label' has fractions: set regression"),
    "semicolons": (["file,what", "a.png,x;y", "b.png,x"], "its column 'what' has cells with ';': set multilabel"),
    "a slip": (["file,age", "a.png,31.5", "b.png,7x"], "its column 'age' has numbers, and '7x': set multiclass"),
    "decimal commas": (["file;age", "a.png;31,5", "b.png;-7,25", "c.png;8"], "as '-7,25': write -7.25 to learn numbers, or set"),
    "decimal commas as labels": (["file;label", "a.png;31,5", "b.png;7,5"], "column 'label' has numbers with a decimal comma"),
    "-1 and 1": (["file,x,y", "a.png,-1,1", "b.png,1,1"], "its columns 'x', 'y' have -1 and 1 alone: write 0 for -1"),
    "one-hot": (["file,x,y", "a.png,0,1", "b.png,1,0"], "its columns 'x', 'y' have a single 1 in each row: set multiclass"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_what_can_be_read_in_two_ways_must_be_said(pets: Write, refused: Refused, case: str) -> None:
    lines, said = ASKED[case]
    pets(*lines)
    ((pointer, message),) = refused()
    assert pointer == "/dataset/task"
    assert said in message


def test_columns_that_are_not_of_the_task_are_refused(pets: Write, refused: Refused) -> None:
    pets("file,x,y", "a.png,1,1", "b.png,0,0.5", "c.png,1,0")
    assert [said for _, said in refused(task="multiclass")] == [
        "labels.csv, line 2: of several classes it must have one: a single 1 in the row",
        "labels.csv, line 3: '0.5' in column 'y' is neither 0 nor 1",
        "labels.csv, line 3: of several classes it must have one: a single 1 in the row",
    ]
    pets("file,label", "a.png,dog", "b.png,2")
    assert refused(task="regression") == [("/dataset/source", "labels.csv, line 2: 'dog' in column 'label' is no number")]


def test_a_csv_that_is_no_utf_8_or_not_there_or_elsewhere_is_refused(pets: Write, refused: Refused) -> None:
    pets("file,label", "a.png,ä", encoding="latin-1")
    assert "line 2: byte 0xe4 is not UTF-8; save the file in that encoding" in refused()[0][1]
    assert "there is no such file in the dataset's folder; there is labels.csv" in refused(labels="lables.csv")[0][1]
    assert "it leaves the dataset's folder" in refused(labels="../../x.csv")[0][1]
    assert refused(source="torchvision:MNIST", labels="x.csv")[0][0] == "/dataset/labels"


def test_a_task_that_the_source_does_not_have_is_refused(pets: Write, refused: Refused) -> None:
    pets(files="x/a.png y/b.png", name="other.csv")
    ((pointer, said),) = refused(task="regression")
    assert (pointer, said) == (
        "/dataset/task",
        "its targets are multiclass, not regression; name a CSV of them in /dataset/labels",
    )
    said = refused(source="torchvision:MNIST", task="multilabel")[0][1]
    assert said == "the targets of torchvision's MNIST are multiclass, not multilabel"


def test_the_one_class_rule_is_for_classes_alone(pets: Write, refused: Refused, opened: Opens) -> None:
    pets("file,label", "a.png,x", "b.png,x")
    assert "it has one class ('x')" in refused()[0][1]
    pets("file,labels", "a.png,x", "b.png,x")
    assert opened().classes == ("x",)
    pets("file,x,y", "a.png,1,0", "b.png,1,0", "c.png,0,0")
    assert opened().notes[-1] == "no image of the training split has 'y'"


def test_a_million_rows_are_read_in_seconds(pets: Write, opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fiftieth of them here; the files are not asked for, so that it is the reading that is measured."""
    count = 20_000
    pets("file,label,split", *(f"{i:07}.png,c{i % 50},{'val' if i % 9 == 0 else 'train'}" for i in range(count)), files="x.txt")
    monkeypatch.setattr(os.path, "isfile", lambda path: str(path).endswith(".png"))
    start = time.process_time()
    dataset = opened()
    assert len(dataset.train) + len(dataset.validation) == count
    assert time.process_time() - start < 2, "about 0.15 s on an idle machine"


# --- what is held out ----------------------------------------------------------------------------------------------------------


def images_of(labels: torch.Tensor) -> FileImages:
    return FileImages(Path(), [str(index) for index in range(len(labels))], labels)


def test_of_several_labels_each_gives_its_share_the_rare_ones_too() -> None:
    frequencies = torch.tensor([0.5, 0.3, 0.1, 0.02, 0.01])
    labels = (torch.rand(2000, 5, generator=torch.Generator().manual_seed(1)) < frequencies).float()
    train, held, _ = hold_out(images_of(labels), "multilabel", 5, 0.2, 0)
    assert len(held) == pytest.approx(400, abs=10)
    for label in range(5):
        assert int(held.labels[:, label].sum()) == pytest.approx(0.2 * float(labels[:, label].sum()), abs=1.5)
    assert int(train.labels.sum() + held.labels.sum()) == int(labels.sum())
    again = hold_out(images_of(labels), "multilabel", 5, 0.2, 0)[1]
    other = hold_out(images_of(labels), "multilabel", 5, 0.2, 1)[1]
    assert held.digest() == again.digest() != other.digest()


def test_rare_labels_that_all_round_down_still_fill_the_share() -> None:
    labels = torch.eye(50).repeat(4, 1)
    train, held, _ = hold_out(images_of(labels), "multilabel", 50, 0.1, 0)
    assert len(held) == 20
    assert int(train.labels.sum(dim=0).min()) >= 3
    lone = torch.eye(3)
    train, held, _ = hold_out(images_of(lone), "multilabel", 3, 0.5, 0)
    assert (len(train), len(held)) == (2, 1), "one must validate, though each label has a single image"


def test_of_one_number_all_its_range_validates() -> None:
    values = torch.linspace(0, 1, 1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0)), None]
    _, held, _ = hold_out(images_of(values), "regression", 1, 0.1, 0)
    assert len(held) == 100
    assert torch.bincount((held.labels[:, 0] * 9.999).long()).tolist() == [10] * 10
    _, held, _ = hold_out(images_of(values.repeat(1, 2)), "regression", 2, 0.1, 0)
    assert len(held) == 100


# --- a job on it ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def squares(places: Places) -> Path:
    """32 pictures of 8 px, each of one grey, and the right answers."""
    folder = places.inputs / "squares"
    folder.mkdir()
    rows = []
    for index in range(32):
        Image.new("RGB", (8, 8), (index * 8,) * 3).save(folder / f"{index:02}.png")
        rows.append((f"{index:02}.png", index / 32, int(index >= 16), int(index % 16 >= 4)))
    (folder / "grey.csv").write_text("file,grey\n" + "".join(f"{name},{grey}\n" for name, grey, *_ in rows))
    (folder / "kinds.csv").write_text("file,light,odd\n" + "".join(f"{name},{one},{two}\n" for name, _, one, two in rows))
    return folder


@pytest.mark.parametrize(
    ("labels", "loss", "task", "share"),
    [
        ("grey.csv", {}, "regression", 0.05),
        ("kinds.csv", {"pos_weight": "balanced"}, "multilabel", 0.75),
        ("kinds.csv", {"name": "SoftMarginLoss"}, "multilabel", 0.75),
    ],
)
def test_a_job_learns_labels_and_numbers(
    places: Places, squares: Path, tmp_path: Path, labels: str, loss: dict[str, Any], task: str, share: float
) -> None:
    spec = JobSpec.model_validate(
        {
            "dataset": {"source": "folder:squares", "labels": labels, "image_size": 8},
            "loader": {"batch_size": 8},
            "model": {"name": "python:graft_tiny:Tiny"},
            "loss": loss,
            "optimizer": {"name": "Adam", "lr": 0.01},
            "training": {"epochs": 15},
        }
    )
    planned = plan(spec, places)
    assert planned.dataset.task == planned.spec.dataset.task == task
    assert planned.spec.loss.name == loss.get("name", {"regression": "MSELoss", "multilabel": "BCEWithLogitsLoss"}[task])
    if "pos_weight" in loss:
        assert planned.spec.loss.keywords["pos_weight"] == pytest.approx([1, 1 / 3], abs=0.1)
    story = list(fit(planned.spec, places, tmp_path / "job"))
    losses = [event.loss for event in story if isinstance(event, Iteration)]
    told = [event[1].validation for event in story if not isinstance(event, Iteration) and isinstance(event[1], EpochData)]
    assert len(losses) == 15 * planned.steps.per_epoch
    assert told[-1] is not None
    assert float(told[-1]["loss"]) < share * losses[0]
    assert "top1" not in told[-1]
    weights, _, _ = load(tmp_path / "job" / str(len(losses)))
    assert len(weights["5.bias"]) == len(planned.dataset.classes)
    card = (tmp_path / "job" / str(len(losses)) / "model.json").read_text()
    assert f'"task": "{task}"' in card


def test_a_plan_tells_the_faults_of_the_loss_with_the_others(places: Places, squares: Path) -> None:
    spec = {
        "dataset": {"source": "folder:squares", "labels": "kinds.csv", "image_size": 8},
        "model": {"name": "torchvision:squeezenet1_1"},
        "loss": {"weight": "balanced"},
        "optimizer": {"groups": [{"params": "nothing.*"}]},
    }
    with pytest.raises(SpecError) as refused:
        plan(JobSpec.model_validate(spec), places)
    assert {fault.pointer for fault in refused.value.faults} == {
        "/loss/weight", "/dataset/image_size", "/optimizer/groups/0/params",
    }  # fmt: skip
    spec["loss"] = {"name": "BCELoss"}
    with pytest.raises(SpecError, match="BCELoss takes probabilities, but this model gives logits"):
        plan(JobSpec.model_validate(spec), places)


def test_a_head_of_numbers_starts_anew_unless_it_is_kept(places: Places, squares: Path, tmp_path: Path) -> None:
    base = {
        "dataset": {"source": "folder:squares", "labels": "grey.csv", "image_size": 8},
        "model": {"name": "python:graft_tiny:Tiny"},
    }
    steps = [event for event in fit(JobSpec.model_validate(base), places, tmp_path / "job") if isinstance(event, Iteration)]
    source = tmp_path / "job" / str(len(steps)) / "model.safetensors"
    source.rename(places.inputs / "first.safetensors")
    for head, status in (("auto", "reinit"), ("keep", "loaded")):
        wish = {"source": "file:first.safetensors", "head": head, **({"classes": ["grey"]} if head == "auto" else {})}
        transfer = plan(JobSpec.model_validate({**base, "pretrained": wish}), places).transfer
        assert transfer is not None
        (bias,) = [one for one in transfer.targets if one.key == "5.bias"]
        assert bias.status == status
