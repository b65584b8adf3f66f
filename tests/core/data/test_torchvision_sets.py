"""Every labelled dataset of torchvision, opened by torchvision's own reader from a miniature of its files."""

import bz2
import json
import pickle

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image

from core.data.datasets import open_dataset
from core.data.torchvision_sets import RECIPES, REFUSED
from core.errors import SpecError
from core.spec import DatasetSpec


def draw(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (number % 256, 50, 100)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def idx(path, array, kind=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, kind, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(header + array.tobytes())


def folders(root, *parts, count=2, suffix=".jpg"):
    """`count` images in each of two class folders `a` and `b` below each of `parts`."""
    for part in parts:
        for number, name in enumerate(("a", "b")):
            for index in range(count):
                draw(root / part / name / f"{index}{suffix}", 50 * number)


def mnist(root, name="MNIST", train="train", held="t10k"):
    for prefix, count in ((train, 4), (held, 2)):
        idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))


def qmnist(root):
    mnist(root, "QMNIST", "qmnist-train", "qmnist-test")
    for prefix, count in (("train", 4), ("test", 2)):
        labels = np.zeros((count, 8), dtype=">i4")
        labels[:, 0] = range(count)
        idx(root / "QMNIST/raw" / f"qmnist-{prefix}-labels-idx2-int", labels, kind=12)


def cifar(root, folder, parts, meta, key, labels):
    for name, count in parts.items():
        entry = {"data": np.zeros((count, 3072), np.uint8), labels: list(range(count))}
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(pickle.dumps(entry))
    (root / folder / meta).write_bytes(pickle.dumps({key: ["a", "b", "c"]}))


def cifar10(root):
    parts = {f"data_batch_{number}": 2 for number in range(1, 6)}
    cifar(root, "cifar-10-batches-py", {**parts, "test_batch": 3}, "batches.meta", "label_names", "labels")


def cifar100(root):
    cifar(root, "cifar-100-python", {"train": 3, "test": 2}, "meta", "fine_label_names", "fine_labels")


def clevr(root):
    folder = root / "clevr/CLEVR_v1.0"
    for split, counts in (("train", [3, 5, 10]), ("val", [5, 3])):
        scenes = []
        for number, objects in enumerate(counts):
            draw(folder / "images" / split / f"{number}.png")
            scenes.append({"image_filename": f"{number}.png", "objects": [0] * objects})
        write(folder / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def caltech101(root):
    for name in ("ant", "bass", "BACKGROUND_Google"):
        for number in (1, 2):
            draw(root / "caltech101/101_ObjectCategories" / name / f"image_{number:04d}.jpg")


def caltech256(root):
    for label, name in enumerate(("001.ak47", "002.flag"), start=1):
        for number in (1, 2):
            draw(root / "caltech256/256_ObjectCategories" / name / f"{label:03d}_{number:04d}.jpg")


def dtd(root):
    for split in ("train", "val"):
        rows = [f"{name}/{split}.jpg" for name in ("banded", "dotted")]
        write(root / "dtd/dtd/labels" / f"{split}1.txt", "\n".join(rows) + "\n")
        for row in rows:
            draw(root / "dtd/dtd/images" / row)


def emnist(root):
    mnist(root, "EMNIST", "emnist-balanced-train", "emnist-balanced-test")


def fer2013(root):
    pixels = " ".join(["7"] * 48 * 48)
    write(root / "fer2013/train.csv", "emotion,pixels\n" + "".join(f"{label},{pixels}\n" for label in (0, 3, 3, 6)))
    write(root / "fer2013/test.csv", f"pixels\n{pixels}\n")


def aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707\nA 320\n")
    for split, number in (("train", 1), ("val", 2)):
        write(data / f"images_variant_{split}.txt", f"{number} 707\n{number}0 A 320\n")
        for name in (number, number * 10):
            draw(data / "images" / f"{name}.jpg")


def flowers(root):
    folder = root / "flowers-102"
    for number in range(1, 5):
        draw(folder / "jpg" / f"image_{number:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([1, 102, 1, 2])})
    scipy.io.savemat(folder / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([4])})


def food(root):
    for split in ("train", "test"):
        write(root / "food-101/meta" / f"{split}.json", json.dumps({name: [f"{name}/{split}"] for name in ("pie", "soup")}))
        for name in ("pie", "soup"):
            draw(root / "food-101/images" / name / f"{split}.jpg")


def gtsrb(root):
    for label in range(3):
        draw(root / "gtsrb/GTSRB/Training" / f"{label:05d}" / "0.ppm")
    draw(root / "gtsrb/GTSRB/Final_Test/Images/0.ppm")
    write(root / "gtsrb/GT-final_test.csv", "Filename;ClassId\n0.ppm;2\n")


def imagenet(root):
    folders(root, "train", "val", suffix=".JPEG")
    torch.save(({"a": ("tench", "Tinca tinca"), "b": ("goldfish",)}, ["a", "b"]), root / "meta.bin")


def imagenette(root):
    for split in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            draw(root / "imagenette2-160" / split / name / "0.jpeg")


def inaturalist(root):
    for version in ("2021_train_mini", "2021_valid"):
        for label in range(2):
            draw(root / version / f"{label:05d}_k_p_c_o_f_g_s" / "x.jpg")


def lfw(root):
    write(root / "lfw-py/lfw-names.txt", "Ann\t2\nBob\t2\n")
    write(root / "lfw-py/people.txt", "1\n2\nAnn\t2\nBob\t2\n")
    write(root / "lfw-py/lfw-funneled.tgz", "")
    for name in ("Ann", "Bob"):
        for number in (1, 2):
            draw(root / "lfw-py/lfw_funneled" / name / f"{name}_{number:04d}.jpg")


def omniglot(root):
    for alphabet in ("Zulu", "Arcadian"):
        for number in (1, 2):
            draw(root / "omniglot-py/images_background" / alphabet / "character01" / f"{number}.png")
    write(root / "omniglot-py/images_background.zip", "")


def pets(root):
    for split in ("trainval", "test"):
        write(root / "oxford-iiit-pet/annotations" / f"{split}.txt", "Abyssinian_1 1 1 1\ngreat_pug_2 2 2 1\n")
    for name in ("Abyssinian_1", "great_pug_2"):
        draw(root / "oxford-iiit-pet/images" / f"{name}.jpg")


def places365(root):
    write(root / "categories_places365.txt", "/a/abbey 0\n/b/bar 1\n")
    write(root / "places365_train_standard.txt", "/a/abbey/1.jpg 0\n/b/bar/2.jpg 1\n")
    write(root / "places365_val.txt", "1.jpg 1\n")
    for path in ("data_256_standard/a/abbey/1.jpg", "data_256_standard/b/bar/2.jpg", "val_256/1.jpg"):
        draw(root / path)


def rendered(root):
    for split in ("train", "valid"):
        for name in ("negative", "positive"):
            draw(root / "rendered-sst2" / split / name / "0.png")


def semeion(root):
    rows = np.zeros((4, 266))
    rows[:, 256:258] = [[1, 0], [0, 1], [1, 0], [0, 1]]
    np.savetxt(root / "semeion.data", rows)


def cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})
    for path, images in (("devkit/cars_train_annos.mat", "cars_train"), ("cars_test_annos_withlabels.mat", "cars_test")):
        rows = np.array([("1.jpg", 1), ("2.jpg", 2)], dtype=[("fname", "O"), ("class", "O")])
        scipy.io.savemat(folder / path, {"annotations": rows})
        for name in ("1.jpg", "2.jpg"):
            draw(folder / images / name)


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        (folder / f"{split}_X.bin").write_bytes(bytes(count * 3 * 96 * 96))
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, count + 1)))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")


def sun397(root):
    write(root / "SUN397/ClassName.txt", "/z/zoo\n/a/abbey/inside\n")
    for path in ("z/zoo/sun_1.jpg", "z/zoo/sun_2.jpg", "a/abbey/inside/sun_3.jpg", "a/abbey/inside/sun_4.jpg"):
        draw(root / "SUN397" / path)


def svhn(root):
    for split, count in (("train", 3), ("test", 2)):
        labels = np.array([[10], [1], [2]][:count], dtype=np.uint8)
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": np.zeros((32, 32, 3, count), np.uint8), "y": labels})


def usps(root):
    for name, count in (("usps.bz2", 3), ("usps.t.bz2", 2)):
        rows = (f"{label + 1} " + " ".join(f"{pixel}:0.5" for pixel in range(1, 257)) for label in range(count))
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


# name: (its files, the classes, training and validation images, channels)
SETS = {
    "CIFAR10": (cifar10, "a b c", 10, 3, 3),
    "CIFAR100": (cifar100, "a b c", 3, 2, 3),
    "CLEVRClassification": (clevr, "3 5 10", 3, 2, 3),
    "Caltech101": (caltech101, "ant bass", 2, 2, 3),
    "Caltech256": (caltech256, "001.ak47 002.flag", 2, 2, 3),
    "Country211": (lambda root: folders(root / "country211", "train", "valid"), "a b", 4, 4, 3),
    "DTD": (dtd, "banded dotted", 2, 2, 3),
    "EMNIST": (emnist, 47, 4, 2, 1),
    "EuroSAT": (lambda root: folders(root / "eurosat", "2750"), "a b", 2, 2, 3),
    "FER2013": (fer2013, "0 3 6", 3, 1, 1),
    "FGVCAircraft": (aircraft, "707|A 320", 2, 2, 3),
    "FakeData": (lambda _: None, 10, 1000, 200, 3),
    "FashionMNIST": (lambda root: mnist(root, "FashionMNIST"), 10, 4, 2, 1),
    "Flowers102": (flowers, 102, 2, 2, 3),
    "Food101": (food, "pie soup", 2, 2, 3),
    "GTSRB": (gtsrb, "0 1 2", 3, 1, 3),
    "INaturalist": (inaturalist, "00000_k_p_c_o_f_g_s 00001_k_p_c_o_f_g_s", 2, 2, 3),
    "ImageNet": (imagenet, "tench, Tinca tinca|goldfish", 4, 4, 3),
    "Imagenette": (imagenette, "tench, Tinca tinca|English springer, English springer spaniel", 2, 2, 3),
    "KMNIST": (lambda root: mnist(root, "KMNIST"), 10, 4, 2, 1),
    "LFWPeople": (lfw, "Ann Bob", 2, 2, 3),
    "MNIST": (mnist, 10, 4, 2, 1),
    "Omniglot": (omniglot, "Arcadian/character01 Zulu/character01", 2, 2, 3),
    "OxfordIIITPet": (pets, "Abyssinian|Great Pug", 2, 2, 3),
    "Places365": (places365, "/a/abbey /b/bar", 2, 1, 3),
    "QMNIST": (qmnist, 10, 4, 2, 1),
    "RenderedSST2": (rendered, "negative positive", 2, 2, 3),
    "SEMEION": (semeion, "0 1", 2, 2, 1),
    "STL10": (stl10, "airplane bird car", 3, 2, 3),
    "SUN397": (sun397, "zoo abbey/inside", 2, 2, 3),
    "SVHN": (svhn, "0 1 2", 3, 2, 3),
    "StanfordCars": (cars, "Audi BMW", 2, 2, 3),
    "USPS": (usps, "0 1 2", 3, 2, 1),
}


@pytest.fixture
def opened(places, monkeypatch):
    """Open a set from its miniature, in a folder of the set's name below the inputs (as its own folder is often called too)."""
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda *_: True)  # no miniature has the real files' sums

    def make(name):
        files = SETS[name][0]
        root = places.inputs / name.lower()
        root.mkdir()
        files(root)
        share = 0.1 if RECIPES[name][0].validation and name != "FER2013" else 0.5
        return open_dataset(DatasetSpec(source=f"torchvision:{name}", validation=share), places, 0)

    return make


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_set_is_read_with_its_labels_classes_and_splits(opened, name):
    _, classes, train, held, channels = SETS[name]
    dataset = opened(name)
    if isinstance(classes, int):
        assert len(dataset.classes) == classes
    else:
        assert dataset.classes == tuple(classes.split("|") if "|" in classes else classes.split())
    assert (len(dataset.train), len(dataset.validation), dataset.channels) == (train, held, channels)
    for images in (dataset.train, dataset.validation):
        assert images.labels.dtype == torch.int64
        for index in range(min(4, len(images))):
            image = images.read(index)
            assert image.dtype == torch.uint8
            assert image.shape[0] == channels
            assert image.ndim == 3


def celeba(root):
    """Six pictures: three to train on, two to validate, one to test."""
    names = [f"{number:06}.jpg" for number in range(1, 7)]
    for number, name in enumerate(names):
        draw(root / "celeba/img_align_celeba" / name, number)
    parts = {
        "list_eval_partition.txt": ["", [0, 0, 1, 0, 1, 2]],
        "identity_CelebA.txt": ["", range(6)],
        "list_bbox_celeba.txt": ["6\nimage_id x_1 y_1 width height\n", ["1 2 3 4"] * 6],
        "list_landmarks_align_celeba.txt": ["6\n" + "x " * 10 + "\n", [" ".join([str(n)] * 10) for n in range(6)]],
        "list_attr_celeba.txt": ["6\nBald Hat Smiling \n", ["-1  1 -1", " 1  1  1", "-1 -1 -1"] * 2],
    }
    for file, (head, rows) in parts.items():
        write(root / "celeba" / file, head + "".join(f"{name} {row}\n" for name, row in zip(names, rows, strict=True)))


def test_celeba_has_labels_and_by_the_task_landmarks(places, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda *_: True)
    celeba(places.inputs)
    attributes = open_dataset(DatasetSpec(source="torchvision:CelebA"), places, 0)
    assert (attributes.task, attributes.classes) == ("multilabel", ("Bald", "Hat", "Smiling"))
    assert attributes.train.labels.tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert [attributes.validation.name(index) for index in range(2)] == [
        "celeba/img_align_celeba/000003.jpg", "celeba/img_align_celeba/000005.jpg",
    ]  # fmt: skip
    landmarks = open_dataset(DatasetSpec(source="torchvision:CelebA", task="regression"), places, 0)
    assert (landmarks.task, landmarks.classes[:3]) == ("regression", ("lefteye_x", "lefteye_y", "righteye_x"))
    assert landmarks.train.labels[:, 9].tolist() == [0, 1, 3]
    with pytest.raises(SpecError, match="are multilabel or regression, not multiclass"):
        open_dataset(DatasetSpec(source="torchvision:CelebA", task="multiclass"), places, 0)


def test_labels_belong_to_their_images(opened):
    """Where readers list folders in the file system's order, ours is by name: the label must move with its image."""
    for name in ("SUN397", "Omniglot", "EuroSAT", "Caltech101"):
        dataset = opened(name)
        for images in (dataset.train, dataset.validation):
            for index in range(len(images)):
                assert dataset.classes[int(images.labels[index])] in images.name(index)


def test_every_recipe_has_a_test_but_celebas_own_and_the_one_that_needs_hdf5():
    assert set(RECIPES) - set(SETS) == {"CelebA", "PCAM"}


def test_a_reader_that_is_not_installed_is_named(places):
    (places.inputs / "pcam").mkdir()
    with pytest.raises(SpecError, match="h5py"):
        open_dataset(DatasetSpec(source="torchvision:PCAM"), places, 0)


def test_no_set_of_torchvision_was_forgotten():
    """A release that adds a set makes this fail: it then gets a recipe, or, where it is not for classification, a line here."""
    others = {
        "CREStereo", "CarlaStereo", "Cityscapes", "CocoCaptions", "CocoDetection", "DatasetFolder", "ETH3DStereo",
        "FallingThingsStereo", "FlyingChairs", "FlyingThings3D", "HD1K", "HMDB51", "ImageFolder", "InStereo2k", "Kinetics",
        "Kitti", "Kitti2012Stereo", "Kitti2015Stereo", "KittiFlow", "LSUNClass", "Middlebury2014Stereo", "MovingMNIST",
        "PhotoTour", "SBDataset", "SceneFlowStereo", "Sintel", "SintelStereo", "UCF101", "VOCDetection", "VOCSegmentation",
        "VisionDataset", "WIDERFace", "wrap_dataset_for_transforms_v2",
    }  # fmt: skip
    assert set(torchvision.datasets.__all__) == others | set(RECIPES) | set(REFUSED)
