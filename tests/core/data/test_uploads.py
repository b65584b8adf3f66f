"""What is found in an uploaded archive, what of it is kept, and when it is refused."""

from __future__ import annotations

import errno

import pytest

from core.data import uploads
from core.data.datasets import open_dataset
from core.errors import DataError, DiskFullError, SpecError
from core.places import Places
from core.spec import DatasetSpec


def csv_of(*rows, header="file,label"):
    """`labels.csv` of these rows."""
    return {"labels.csv": "\n".join([header, *rows]).encode()}


@pytest.fixture
def receive(tmp_path, pack):
    """`receive(files)`: the report on an archive of these files; what was kept lies in `tmp_path / "7"`."""

    def receive(files, kind="tar"):
        (tmp_path / "archive").write_bytes(files if isinstance(files, bytes) else pack(files, kind))
        bounds = {"files": 1000, "bytes": 1_000_000}
        return uploads.unpack_request({"archive": str(tmp_path / "archive"), "folder": str(tmp_path / "7"), "bounds": bounds})

    return receive


@pytest.fixture
def refusal(receive):
    def refusal(files, kind="tar"):
        with pytest.raises(SpecError) as caught:
            receive(files, kind)
        (fault,) = caught.value.faults
        assert fault.pointer == ""
        return fault.message

    return refusal


@pytest.fixture
def kept(tmp_path):
    return lambda: sorted(str(path.relative_to(tmp_path / "7")) for path in (tmp_path / "7").rglob("*") if path.is_file())


def test_class_folders_are_counted_and_a_job_can_open_them(receive, pictures, tmp_path):
    report = receive({**pictures("cats", count=3), **pictures("dogs", count=2, first=3)})
    assert report["classes"] == [
        {"name": "cats", "train": 3, "validation": 0},
        {"name": "dogs", "train": 2, "validation": 0},
    ]
    assert (report["images"], report["counts"]["train"], report["counts"]["validation"], report["warnings"]) == (5, 5, 0, [])
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "7").rglob("*.png"))
    opened = open_dataset(DatasetSpec(source="upload:7"), Places(uploads=tmp_path), seed=0)
    assert (opened.classes, len(opened.train) + len(opened.validation)) == (("cats", "dogs"), 5)


@pytest.mark.parametrize("held", ["val", "test"])
def test_a_split_of_its_own_is_counted_apart(receive, pictures, tmp_path, held):
    folders = ("train/cats", "train/dogs", f"{held}/cats", f"{held}/dogs")
    report = receive(pictures(*(f"pets/{folder}" for folder in folders)), "zip")
    assert report["classes"] == [{"name": name, "train": 2, "validation": 2} for name in ("cats", "dogs")]
    opened = open_dataset(DatasetSpec(source="upload:7"), Places(uploads=tmp_path), seed=0)
    assert (len(opened.train), len(opened.validation)) == (4, 4)


def test_the_same_files_packed_otherwise_are_the_same_dataset_and_others_are_not(receive, pictures, tmp_path):
    files, told = pictures("cats", "dogs"), []
    ways = [
        (files, "tar"),
        (dict(reversed(files.items())), "zip"),
        ({"pets": None, **{f"pets/{name}": content for name, content in files.items()}}, "tar.gz"),
        ({**files, "cats/.DS_Store": b"x", "__MACOSX/cats/._0.png": b"x", "cats/Thumbs.db": b"x", ".git/x/y.png": b"x"}, "zip"),
        ({**files, "README.txt": b"pictures of pets", "cats/notes.doc": b"x"}, "tar"),
        ({**files, "cats/9.png": files["cats/0.png"]}, "tar"),
    ]
    for number, way in enumerate(ways):
        told.append(receive(*way))
        (tmp_path / "7").rename(tmp_path / f"kept-{number}")
    assert len({report["sha256"] for report in told[:-1]}) == 1
    assert told[-1]["sha256"] != told[0]["sha256"]
    assert [report["counts"]["left_out"] for report in told] == [0, 0, 0, 0, 2, 0]
    assert "'README.txt', 'cats/notes.doc'" in told[4]["warnings"][0]


def test_only_what_a_job_reads_is_kept(receive, pictures, kept):
    files = pictures("train/cats", "train/dogs", count=1)
    report = receive({**files, **pictures("", "test/cats", "extra/cats", "test/dogs", "val/cats", "val/dogs", count=1, first=9)})
    assert kept() == ["train/cats/0.png", "train/dogs/0.png", "val/cats/0.png", "val/dogs/0.png"]
    assert (report["images"], report["counts"]["left_out"]) == (4, 4)


def test_a_table_of_labels_goes_through_with_images_wherever_they_lie(receive, pictures, kept):
    table = b"name,sharp\n0.png,0.5\n1.png,1.5\nimages/a/0.png,2.5\nimages/a/1.png,3.5\n"
    report = receive({**pictures("set/images/a", "set"), "set/labels.csv": table, "set/images/x.csv": b"", "set/x.txt": b""})
    assert kept() == ["0.png", "1.png", "images/a/0.png", "images/a/1.png", "labels.csv"]
    assert (report["images"], report["task"], report["counts"]["train"]) == (4, "regression", 4)
    assert report["classes"] == [{"name": "sharp", "train": 4, "validation": 0}]


def test_a_csv_has_its_classes_and_its_split_counted(receive, pictures):
    rows = ["img/0.png,a,train", "img/1.png,b,train", "img/2.png,a,val", "img/3.png,b,test"]
    report = receive({**pictures("img", count=4), **csv_of(*rows, header="file,label,split")})
    assert (report["task"], report["counts"]["train"], report["counts"]["validation"]) == ("multiclass", 2, 1)
    assert report["classes"] == [{"name": "a", "train": 1, "validation": 1}, {"name": "b", "train": 1, "validation": 0}]
    assert report["warnings"] == [
        "of labels.csv the rows of the split 'test' are left out, for those of 'validation' validate",
        "every image of the validation split is of the class 'a'",
    ]


def test_a_csv_of_labels_counts_the_images_of_each(receive, pictures):
    report = receive({**pictures("", count=3), **csv_of("0.png,red;round", "1.png,", "2.png,red", header="file,labels")})
    assert report["task"] == "multilabel"
    assert {one["name"]: one["train"] for one in report["classes"]} == {"red": 2, "round": 1}


def test_duplicates_of_a_csv_are_told_apart_by_its_rows(receive, pictures):
    files = pictures("img", count=7)
    files["img/1.png"] = files["img/0.png"]  # another label
    files["img/3.png"] = files["img/2.png"]  # the same, in the other split
    files["img/5.png"] = files["img/4.png"]  # the same, in the same
    rows = [f"img/{n}.png,{label},{split}" for n, (label, split) in enumerate(zip("abaaabb", "ttvttvt", strict=True))]
    rows[5] = "img/5.png,a,t"
    rows = [row.removesuffix(",t") + ",train" if row.endswith(",t") else row.removesuffix(",v") + ",val" for row in rows]
    report = receive({**files, **csv_of(*rows, header="file,label,split")})
    named = {kind: [same["names"] for same in found] for kind, found in report["duplicates"].items()}
    assert named == {
        "conflicting": [["img/0.png", "img/1.png"]],
        "leaking": [["img/2.png", "img/3.png"]],
        "repeated": [["img/4.png", "img/5.png"]],
    }


@pytest.mark.parametrize("table", [b"", b"file,label\ncats/0.png,a\ndogs/0.png,b\n"])
def test_class_folders_go_before_a_csv_beside_them_as_in_a_job(receive, pictures, table):
    files = pictures("cats", "dogs", first=20)
    files["dogs/9.png"] = files["cats/0.png"]
    report = receive({**files, "labels.csv": table})
    assert [one["name"] for one in report["classes"]] == ["cats", "dogs"]
    assert [same["names"] for same in report["duplicates"]["conflicting"]] == [["cats/0.png", "dogs/9.png"]]
    assert "labels.csv lies beside the class folders, and is not read" in report["warnings"][0]


def test_images_that_no_row_names_are_told(receive, pictures):
    report = receive({**pictures("img", count=4), **csv_of("img/0.png,a", "img/1.png,b")})
    assert (report["images"], report["counts"]["train"]) == (4, 2)
    assert report["warnings"] == ["2 images are not used, for no row of labels.csv names them: 'img/2.png', 'img/3.png'"]


def test_what_a_csv_leaves_to_the_job_is_told_and_its_rows_are_compared_all_the_same(receive, pictures, tmp_path):
    files = pictures("img", count=4)
    files["img/1.png"] = files["img/0.png"]
    rows = [f"img/{number}.png,{number},{'val' if number == 3 else 'train'}" for number in range(4)]
    report = receive({**files, **csv_of(*rows, header="file,age,split")})
    assert (report["task"], report["classes"], report["counts"]["validation"]) == (None, [], 1)
    assert report["counts"]["conflicting"] == 1
    assert "a job must set `dataset.task`: the CSV can be read in two ways, for its column 'age'" in report["warnings"][0]
    assert open_dataset(DatasetSpec(source="upload:7", task="regression"), Places(uploads=tmp_path), seed=0).classes == ("age",)


@pytest.mark.parametrize("name", ["sightings.csv", "Labels.CSV"])
def test_a_csv_of_another_name_is_found_where_it_is_the_only_one(receive, pictures, tmp_path, name):
    (table,) = csv_of("img/0.png,a", "img/1.png,b").values()
    report = receive({**pictures("birds/img"), f"birds/{name}": table})
    assert [one["name"] for one in report["classes"]] == ["a", "b"]
    assert open_dataset(DatasetSpec(source="upload:7"), Places(uploads=tmp_path), seed=0).classes == ("a", "b")


def test_a_csv_of_macos_finds_the_names_that_an_archive_of_it_gets(receive, pictures):
    composed, decomposed = "gr\u00fcn", "gru\u0308n"
    report = receive({**pictures(decomposed), **csv_of(f"{decomposed}/0.png,a", f"{composed}/1.png,b")})
    assert report["counts"]["train"] == 2


@pytest.mark.parametrize(
    "folders", [["train", "car", "plane"], ["train/train", "train/car"], ["pets/train/train", "pets/train/car"]]
)
def test_a_class_may_be_called_as_a_split_is(receive, pictures, tmp_path, folders):
    report = receive(pictures(*folders))
    names = sorted(folder.rpartition("/")[2] for folder in folders)
    assert [one["name"] for one in report["classes"]] == names
    assert open_dataset(DatasetSpec(source="upload:7"), Places(uploads=tmp_path), seed=0).classes == tuple(names)


def test_folders_around_everything_are_taken_away(receive, pictures, kept):
    report = receive({**pictures("data/images/cats", "data/images/dogs", count=1), "data/notes.txt": b"x"})
    assert kept() == ["cats/0.png", "dogs/0.png"]
    assert report["counts"]["left_out"] == 1


def test_splits_by_another_name_are_told_to_be_taken_for_classes(receive, pictures):
    report = receive(pictures("Train/cats", "Train/dogs", "Val/cats", "Val/dogs"))
    assert "its folders 'Train', 'Val' are taken for classes; if they are splits, call them 'train'" in report["warnings"][0]


def test_corrupt_images_are_named_with_the_reason_and_kept(receive, pictures, kept, tmp_path):
    files = pictures("cats", "dogs")
    whole = files["cats/1.png"]
    broken = {"cats/1.png": whole[:-30], "cats/2.png": b"", "dogs/3.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"}
    report = receive({**files, **broken})
    assert [one["name"] for one in report["corrupt"]] == list(broken)
    assert all(one["reason"] and str(tmp_path) not in one["reason"] for one in report["corrupt"])
    assert "truncated" in report["corrupt"][0]["reason"]
    assert (report["counts"]["corrupt"], report["images"]) == (3, 6)
    assert "3 images cannot be read" in report["warnings"][0]
    assert set(broken) < set(kept())
    opened = open_dataset(DatasetSpec(source="upload:7"), Places(uploads=tmp_path), seed=0)
    images = opened.train
    bad = [index for index in range(len(images)) if images.name(index) in broken]
    for index in bad:
        with pytest.raises(DataError):
            images.read(index)
    assert bad, "what the check calls corrupt, training cannot read"


def test_more_pixels_than_a_photograph_has_are_no_image(receive, pictures, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 50)
    with pytest.raises(SpecError, match="cannot be read, which leaves 0 classes"):
        receive(pictures("cats", "dogs"))


def test_duplicates_are_told_apart(receive, pictures):
    folders = [f"{split}/{name}" for split in ("train", "val") for name in ("cats", "dogs")]
    files = pictures(*folders, count=4)
    files["train/cats/1.png"] = files["train/cats/0.png"]  # repeated
    files["train/dogs/0.png"] = files["train/cats/2.png"]  # in two classes
    files["val/dogs/0.png"] = files["train/dogs/1.png"]  # in both splits
    files["val/cats/0.png"] = files["train/dogs/2.png"]  # in two classes and in both splits
    report = receive(files)
    named = {kind: [same["names"] for same in found] for kind, found in report["duplicates"].items()}
    both = ["train/dogs/2.png", "val/cats/0.png"]
    assert named == {
        "repeated": [["train/cats/0.png", "train/cats/1.png"]],
        "conflicting": [["train/cats/2.png", "train/dogs/0.png"], both],
        "leaking": [["train/dogs/1.png", "val/dogs/0.png"], both],
    }
    assert [report["counts"][kind] for kind in named] == [1, 2, 2]
    assert len(report["warnings"]) == 3


def test_folders_without_images_are_told_and_are_no_classes(receive, pictures):
    report = receive({**pictures("pets/cats", "pets/dogs"), "pets/birds": None, "pets/fish/notes.txt": b"none yet"})
    assert report["empty_classes"] == ["birds", "fish"]
    assert [one["name"] for one in report["classes"]] == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("folders", "others", "said"),
    [
        ([], {}, "no image in a class folder in it, and nothing else"),
        ([], {"cats": None, "dogs": None}, "only empty folders"),
        ([], {"a.txt": b"", "data/b.parquet": b""}, "but 2 files: 'a.txt', 'data/b.parquet'"),
        ([""], {}, "but 2 files: '0.png', '1.png'"),
        (["cats"], {}, "one class, 'cats', of 2 images"),
        (["pets/cats"], {}, "one class, 'cats', of 2 images"),
        (["train/cats", "val/cats"], {}, "one class, 'cats', of 4 images"),
        (["train/cats", "train/dogs", "val/cats"], {}, "different class folders ('dogs' in one alone)"),
        (["cats"], {"dogs/1.png": b"no"}, "leaves 1 class to train on (dogs/1.png: "),
        ([], {"0.png": b"no", "1.png": b"no", **csv_of("0.png,a", "1.png,b")}, "leaves 0 classes to train on (0.png: "),
        ([""], {"1.png": b"no", **csv_of("0.png,.5", "1.png,1", header="file,x")}, "leaves 1 image to train and to validate on"),
        (
            [""],
            {"1.png": b"no", **csv_of("0.png,.5,train", "1.png,1,val", header="file,x,split")},
            "of its 2 images 1 cannot be read, which leaves none to validate on",
        ),
        ([""], csv_of("0.png,a", "1.png,a"), "it has one class ('a')"),
        ([""], csv_of("0.png,a", "2.png,b"), "labels.csv, line 3: there is no file '2.png'"),
        ([""], {"a.csv": b"", "b.csv": b""}, "it has 'a.csv', 'b.csv', and not two class folders; call the one with"),
        (["train", "val"], {}, "its folders 'train', 'val' have images, but no class folders"),
        (["cats", "dogs"], {"cats/0.png/x.png": b""}, "in it twice, or as a file and a folder"),
    ],
)
def test_what_cannot_train_is_refused_with_what_was_found(refusal, pictures, folders, others, said):
    assert said in refusal({**pictures(*folders), **others})


def test_a_full_disk_is_told_as_one(receive, pictures, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads, "_write", full)
    with pytest.raises(DiskFullError, match="no room"):
        receive(pictures("cats", "dogs"))


@pytest.mark.parametrize("source", ["upload:8", "upload:07", "upload:../7", "upload:", "upload:seven"])
def test_an_unknown_upload_names_the_way_out(source, tmp_path):
    (tmp_path / "7").mkdir()
    for places in (Places(uploads=tmp_path), Places()):
        with pytest.raises(SpecError) as caught:
            open_dataset(DatasetSpec(source=source), places, seed=0)
        (fault,) = caught.value.faults
        assert fault.pointer == "/dataset/source"
        assert "GET /datasets lists them, POST /datasets takes one" in fault.message
