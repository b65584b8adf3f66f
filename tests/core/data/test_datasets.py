"""Datasets: what is found by a name, how it is split, and what is said when it is not there or damaged."""

import gzip

import numpy as np
import pytest
import torch

from core.data import datasets
from core.errors import DataError, SpecError
from core.places import Places
from core.spec import DatasetSpec


def open_at(source, places, seed=0, validation=0.1):
    return datasets.open_dataset(DatasetSpec(source=source, validation=validation), places, seed)


def refusal(source, places):
    with pytest.raises(SpecError) as caught:
        open_at(source, places)
    (fault,) = caught.value.faults
    assert fault.pointer == "/dataset/source"
    return fault.message


def write_idx(folder, images, labels, prefix, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
        data = header + array.astype(np.uint8).tobytes()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)


def write_fashion(folder, suffix=".gz"):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 20)):
        write_idx(folder, rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10, prefix, suffix)


# --- scikit-learn's digits --------------------------------------------------------------------------------------------------


def test_digits_fill_the_range_of_a_byte(places):
    digits = open_at("sklearn:digits", places)
    assert digits.classes == tuple("0123456789")
    assert (digits.channels, digits.size) == (1, (8, 8))
    pixels = torch.stack([digits.train.read(index) for index in range(100)])
    assert pixels.dtype == torch.uint8
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)


def test_the_held_out_share_is_stratified_and_disjoint(places):
    digits = open_at("sklearn:digits", places)
    assert (len(digits.train), len(digits.validation)) == (1617, 180)
    assert digits.validation.labels.bincount().tolist() == [18] * 10
    names = [digits.train.name(i) for i in range(1617)] + [digits.validation.name(i) for i in range(180)]
    assert len(set(names)) == 1797
    assert digits.notes == ()


def test_the_same_seed_holds_out_the_same_samples_and_another_seed_others(places):
    first, again, other = (open_at("sklearn:digits", places, seed=seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


# --- class folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders_is_split_by_us(places, draw):
    draw({"pets/cats": 10, "pets/dogs": 20})
    pets = open_at("folder:pets", places)
    assert pets.classes == ("cats", "dogs")
    assert pets.validation.labels.bincount().tolist() == [1, 2]
    assert pets.train.read(0).shape == (3, 8, 12)


@pytest.mark.parametrize(
    "content", [b"", b"broken", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"\xff\xd8\xff\xe0", b"II*\x00\xff\xff", b"GIF89a"]
)
def test_whatever_a_damaged_image_does_to_its_reader_the_error_names_it(places, draw, content):
    draw({"pets/cats": 2, "pets/dogs": 2})
    for path in (places.inputs / "pets").rglob("*.png"):
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"^the image (cats|dogs)/\d\.png cannot be read: ") as caught:
        open_at("folder:pets", places).train.read(0)
    assert str(places.inputs) not in str(caught.value)


@pytest.mark.parametrize("held", ["val", "valid", "validation", "test"])
def test_a_folder_with_its_own_split_keeps_it(places, draw, held):
    draw({"pets/train/cats": 3, "pets/train/dogs": 3, f"pets/{held}/cats": 2, f"pets/{held}/dogs": 1})
    pets = open_at("folder:pets", places)
    assert (len(pets.train), len(pets.validation)) == (6, 3)
    assert pets.validation.name(0) == f"{held}/cats/0.png"


def test_a_folder_with_train_alone_holds_out_from_it(places, draw):
    draw({"pets/train/cats": 10, "pets/train/dogs": 10, "pets/notes/x": 1})
    pets = open_at("folder:pets", places)
    assert (len(pets.train), len(pets.validation)) == (18, 2)


def test_a_tiny_folder_still_validates_on_one_image_and_says_so(places, draw):
    draw({"pets/cats": 2, "pets/dogs": 1})
    pets = open_at("folder:pets", places)
    assert (len(pets.train), len(pets.validation)) == (2, 1)
    assert sorted(pets.train.labels.tolist()) == [0, 1], "each class keeps one to train on"
    (note,) = open_at("folder:pets", places, validation=0.9).notes
    assert "of 3 images 1 validates" in note


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({"pets/cats": 3}, "one class ('cats')"),
        ({"pets/cats": 3, "pets/dogs": 0}, "'pets': no image is in its class folders 'dogs'"),
        ({"pets": 3}, "'pets' has no class folders: a dataset is a folder for each class with its images in it, or images and"),
        ({"pets/train": 3, "pets/val": 3}, "its folders 'train', 'val' have images, but no class folders"),
        ({"pets/train/cats": 1, "pets/train/dogs": 1, "pets/val/cats": 1}, "different class folders ('dogs' in one alone)"),
    ],
)
def test_a_folder_that_cannot_train_a_classifier_is_refused(places, draw, folders, said):
    draw(folders)
    assert said in refusal("folder:pets", places)


def test_hidden_and_litter_folders_and_files_are_no_data(places, draw):
    draw({"pets/cats": 3, "pets/dogs": 3, "pets/.ipynb_checkpoints": 2, "pets/__MACOSX/cats": 2, "pets/cats/.cache": 2})
    (places.inputs / "pets/cats/._0.png").touch()
    pets = open_at("folder:pets", places)
    assert (pets.classes, len(pets.train) + len(pets.validation)) == (("cats", "dogs"), 6)


def test_train_without_class_folders_is_a_class(places, draw):
    draw({"fleet/train": 3, "fleet/car": 3, "fleet/plane": 3})
    assert open_at("folder:fleet", places).classes == ("car", "plane", "train")


def test_folders_around_everything_do_not_count(places, draw):
    draw({"pets/data/images/cats": 10, "pets/data/images/dogs": 10})
    pets = open_at("folder:pets", places)
    assert (pets.classes, len(pets.train)) == (("cats", "dogs"), 18)
    assert pets.notes == ("it begins in 'data/images', the one folder that has images",)


def test_train_is_a_split_and_no_folder_around_everything(places, draw):
    draw({"pets/train/cats": 2, "pets/train/dogs": 2})
    pets = open_at("folder:pets", places)
    assert {pets.train.name(index).partition("/")[0] for index in range(len(pets.train))} == {"train"}


def test_images_that_are_in_no_class_folder_are_told(places, draw):
    draw({"pets/train/cats": 10, "pets/train/dogs": 10, "pets/val": 1, "pets/extra/cats": 1, "pets/train": 1, "pets": 1})
    pets = open_at("folder:pets", places)
    assert (len(pets.train), len(pets.validation)) == (18, 2)
    assert pets.notes == ("images in no class folder are not used: 'extra/', 'val/', '0.png', '0.png'",)


def test_a_second_folder_that_could_validate_is_told(places, draw):
    draw({f"pets/{split}/{name}": 2 for split in ("train", "val", "test") for name in ("cats", "dogs")})
    assert open_at("folder:pets", places).notes == ("'test' beside train is not used, for val validates",)


def test_splits_by_another_name_are_told_to_be_taken_for_classes(places, draw):
    draw({"pets/training/cats": 10, "pets/testing/cats": 10})
    assert "its folders 'testing', 'training' are taken for classes" in open_at("folder:pets", places).notes[0]


@pytest.mark.parametrize(("folder", "meant"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST"), ("digits", "MNIST")])
def test_a_folder_of_idx_files_is_told_apart_from_class_folders(places, folder, meant):
    write_fashion(places.inputs / folder)
    assert f"its idx files look like those of torchvision:{meant}" in refusal(f"folder:{folder}", places)


def test_of_several_csv_files_one_must_be_named(places, draw):
    draw({"pets/img": 2})
    for name in ("a.csv", "b.CSV"):
        (places.inputs / "pets" / name).write_text("file,x\nimg/0.png,0.5\nimg/1.png,1\n")
    assert "it has 'a.csv', 'b.CSV', and not two class folders; call the one with the labels labels.csv" in refusal(
        "folder:pets", places
    )
    assert datasets.open_dataset(DatasetSpec(source="folder:pets", labels="b.CSV"), places, 0).task == "regression"


def test_an_image_that_is_known_to_be_unreadable_is_a_fault_of_the_spec_unless_it_is_to_be_left_out(places, draw):
    draw({"pets/cats": 3, "pets/dogs": 3})
    known = places.model_copy(update={"unreadable": ("cats/1.png", "birds/0.png")})
    with pytest.raises(SpecError) as caught:
        open_at("folder:pets", known)
    (fault,) = caught.value.faults
    assert fault.pointer == "/dataset/corrupt"
    assert "'cats/1.png' could not be read; set skip" in fault.message
    skipping = DatasetSpec(source="folder:pets", corrupt="skip")
    assert (
        "'cats/1.png' could not be read; what cannot be read is left out" in datasets.open_dataset(skipping, known, 0).notes[-1]
    )


def test_a_file_is_no_folder(places):
    (places.inputs / "pets").write_text("")
    assert "is a file" in refusal("folder:pets", places)


def test_a_corrupt_image_is_named_when_it_is_read(places, draw):
    draw({"pets/cats": 4, "pets/dogs": 4})
    (places.inputs / "pets/cats/2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    pets = open_at("folder:pets", places, validation=0.25)
    splits = [pets.train, pets.validation]
    images, index = next((s, i) for s in splits for i in range(len(s)) if s.name(i) == "cats/2.png")
    with pytest.raises(DataError, match=r"cats/2\.png cannot be read"):
        images.read(index)


def test_the_fingerprint_sees_a_changed_label_and_a_changed_file(places, draw):
    inputs = draw({"pets/cats": 4, "pets/dogs": 4})
    before = open_at("folder:pets", places).fingerprint
    assert open_at("folder:pets", places).fingerprint == before
    (inputs / "pets/cats/0.png").rename(inputs / "pets/dogs/9.png")
    assert open_at("folder:pets", places).fingerprint != before
    (inputs / "pets/dogs/9.png").rename(inputs / "pets/cats/0.png")
    with (inputs / "pets/cats/0.png").open("ab") as file:
        file.write(b"more")
    assert open_at("folder:pets", places).fingerprint != before


# --- MNIST and its kin as four idx files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["FashionMNIST", "fashion-mnist", "fashionmnist", "."])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_flat_idx_files_are_found_gzipped_or_plain(places, folder, suffix):
    write_fashion(places.inputs / folder, suffix)
    fashion = open_at("torchvision:FashionMNIST", places)
    assert fashion.classes[:2] == ("T-shirt/top", "Trouser")
    assert (len(fashion.train), len(fashion.validation), fashion.size, fashion.channels) == (40, 20, (28, 28), 1)
    assert fashion.validation.labels.tolist() == [index % 10 for index in range(20)]


def test_emnist_has_its_own_file_names(places):
    labels = np.arange(94) % 47
    for prefix in ("emnist-balanced-train", "emnist-balanced-test"):
        write_idx(places.inputs / "emnist", np.zeros((94, 28, 28)), labels, prefix)
    assert len(open_at("torchvision:EMNIST", places).classes) == 47


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "train-images-idx3-ubyte.gz is damaged"),
        (lambda path: path.write_bytes(b"no gzip at all"), "train-images-idx3-ubyte.gz is damaged"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x01")), "is no idx file of 3 dimensions"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")), "ends within its header"),
        (lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])), "announces 31360 bytes"),
        (lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x")), "it has more"),
    ],
)
def test_a_damaged_idx_file_is_named(places, damage, said):
    write_fashion(places.inputs)
    damage(places.inputs / "train-images-idx3-ubyte.gz")
    assert said in refusal("torchvision:FashionMNIST", places)


def test_idx_files_that_do_not_belong_together_are_refused(places):
    write_fashion(places.inputs)
    write_idx(places.inputs, np.zeros((3, 28, 28)), np.zeros(4), "t10k")
    assert "t10k: 3 images, but 4 labels" in refusal("torchvision:FashionMNIST", places)
    (places.inputs / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte (or t10k-labels-idx1-ubyte.gz) is not beside" in refusal("torchvision:FashionMNIST", places)


def test_a_label_beyond_the_classes_is_refused(places):
    write_fashion(places.inputs)
    write_idx(places.inputs, np.zeros((2, 28, 28)), np.array([3, 10]), "train")
    assert "labels from 3 to 10, but there are 10 classes" in refusal("torchvision:FashionMNIST", places)


# --- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("torchvision:FashonMNIST", "Did you mean 'FashionMNIST'?"),
        ("torchvison:MNIST", "Did you mean 'torchvision:MNIST'?"),
        ("digits", "Did you mean 'sklearn:digits'?"),
        ("mnist", "Did you mean 'torchvision:MNIST'?"),
        ("sklearn:iris", "digits"),
        ("s3:bucket", "Known: torchvision, sklearn, folder, upload."),
        ("", "Write torchvision:NAME"),
        ("torchvision:CelebA", "'celeba' is not in the inputs directory"),
        ("torchvision:Flickr8k", "it has captions"),
        ("torchvision:CIFAR10", "'cifar-10-batches-py' is not in the inputs directory"),
        ("folder:../secrets", "leaves the inputs directory"),
        ("folder:nope", "it is empty"),
    ],
)
def test_a_source_that_is_not_there_is_told_with_the_way_out(places, source, said):
    with pytest.raises(SpecError) as caught:
        datasets.open_dataset(DatasetSpec.model_construct(source=source, validation=0.1), places, 0)
    assert said in caught.value.faults[0].message


def test_every_source_of_the_catalog_is_known_here():
    assert datasets.dataset_sources()["sklearn"] == ["digits"]
    assert {"MNIST", "CIFAR10", "Food101", "OxfordIIITPet"} <= set(datasets.dataset_sources()["torchvision"])


def test_a_download_that_fails_says_what_was_missing(tmp_path, monkeypatch):
    import torchvision

    def no_network(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(torchvision.datasets.eurosat, "download_and_extract_archive", no_network)
    (tmp_path / "inputs").mkdir()
    allowed = Places(inputs=tmp_path / "inputs", cache=tmp_path / "cache", download=True)
    assert "no network here" in refusal("torchvision:EuroSAT", allowed)
    assert "torchvision cannot download it" in refusal("torchvision:ImageNet", allowed)
