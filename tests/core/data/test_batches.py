"""Batches: the order of samples, where batches end, both tiers alike, nothing taken from the global random state."""

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from core.data.batches import make_loader
from core.data.images import ArrayImages
from core.data.ordering import batch_bounds, steps_per_epoch
from core.data.preprocessing import Normalise, Preprocessing
from core.data.tiers import fit
from core.errors import SpecError
from core.spec import JobSpec, LoaderSpec

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12, of workers

CPU = torch.device("cpu")
PLAIN = Preprocessing(8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # a batch has the bytes' own values


@pytest.fixture
def numbered():
    """Images each of which is filled with its own number, and labelled with it."""

    def make(count):
        numbers = torch.arange(count)
        pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
        return ArrayImages(pixels, numbers, "train")

    return make


@pytest.fixture
def load(places):
    def make(images, *, preprocessing=PLAIN, channels=1, seed=0, train=True, resident=True, **spec):
        limit = places if resident else places.model_copy(update={"resident_bytes": 0})
        return make_loader(
            images, LoaderSpec(**spec), preprocessing, channels=channels, seed=seed, train=train, device=CPU, places=limit
        )

    return make


def labels_of(loader, epoch):
    return torch.cat([labels for _, labels in loader.batches(epoch)]).tolist()


# --- order -------------------------------------------------------------------------------------------------------------------


def test_the_one_value_of_grey_images_is_for_all_channels() -> None:
    grey, colour = Preprocessing.of(28, (0.5,), [1]), Preprocessing.of(28, [0.1, 0.2, 0.3], [1, 1, 1])
    assert (grey.mean, grey.std, colour.mean) == ((0.5, 0.5, 0.5), (1, 1, 1), (0.1, 0.2, 0.3))


def test_the_order_is_a_function_of_seed_and_epoch(numbered, load):
    first, again, other = (load(numbered(100), seed=seed) for seed in (1, 1, 2))
    assert labels_of(first, 5) == labels_of(again, 5), "whatever came before"
    assert labels_of(first, 5) != labels_of(first, 6)
    assert labels_of(first, 5) != labels_of(other, 5)
    assert sorted(labels_of(first, 5)) == list(range(100))


def test_seeds_that_agree_in_their_low_bits_give_other_orders(numbered, load):
    orders = {tuple(labels_of(load(numbered(50), seed=seed), epoch)) for seed in (0, 1, 2**30) for epoch in (0, 1, 2)}
    assert len(orders) == 9


def test_without_shuffle_and_in_validation_the_order_is_the_dataset_s(numbered, load):
    assert labels_of(load(numbered(50), shuffle=False), 3) == list(range(50))
    assert labels_of(load(numbered(50), train=False), 3) == list(range(50))


def test_images_and_labels_stay_together(numbered, load):
    for images, labels in load(numbered(50), batch_size=16).batches(0):
        assert images.shape == (len(labels), 3, 8, 8)
        assert torch.allclose(images, labels.view(-1, 1, 1, 1).float().expand_as(images))


# --- where batches end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last", "sizes"),
    [
        (12, 4, False, [4, 4, 4]),
        (14, 4, False, [4, 4, 4, 2]),
        (13, 4, False, [4, 4, 5]),
        (13, 4, True, [4, 4, 4]),
        (14, 4, True, [4, 4, 4]),
        (3, 4, False, [3]),
        (1, 4, False, [1]),
        (3, 1, False, [1, 1, 1]),
        (3, 4, True, []),
    ],
)
def test_the_last_batch_is_kept_joined_or_dropped(samples, batch_size, drop_last, sizes):
    spec = LoaderSpec(batch_size=batch_size, drop_last=drop_last)
    bounds = batch_bounds(samples, spec)
    assert [last - first for first, last in bounds] == sizes
    assert [first for first, _ in bounds[1:]] == [last for _, last in bounds[:-1]], "no sample twice, none between"


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_an_epochs_last_step_may_be_of_fewer_batches(accumulate, steps):
    spec = JobSpec.model_validate(
        {"dataset": {"source": "sklearn:digits"}, "model": {"name": "x"}, "loader": {"batch_size": 4},
         "training": {"accumulate": accumulate}}
    )  # fmt: skip
    assert steps_per_epoch(14, spec) == steps


def test_samples_counts_what_an_epoch_trains_on(numbered, load):
    assert load(numbered(14), batch_size=4).samples == 14
    assert load(numbered(14), batch_size=4, drop_last=True).samples == 12
    assert load(numbered(14), batch_size=4, drop_last=True, train=False).samples == 14, "validation loses nothing"


def test_drop_last_that_leaves_nothing_is_refused(numbered, load):
    with pytest.raises(SpecError, match="3 training images are less than one batch of 4"):
        load(numbered(3), batch_size=4, drop_last=True)


# --- what the model sees ---------------------------------------------------------------------------------------------------


def test_images_are_normalised_and_grey_becomes_three_channels():
    preprocessing = Preprocessing(8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for channels in (1, 3):
        pixels = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
        expected = transforms.normalize(pixels.expand(4, 3, 8, 8).float() / 255, preprocessing.mean, preprocessing.std)
        torch.testing.assert_close(Normalise(preprocessing, CPU)(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 30), (31, 9), (4, 400)])
def test_an_image_is_its_central_square_resized(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    image[:, top : top + side, left : left + side] = 200
    assert torch.equal(fit(image, 16), torch.full((3, 16, 16), 200, dtype=torch.uint8))


def test_resizing_is_torchvision_s_with_antialias():
    image = torch.randint(0, 256, (3, 50, 50), dtype=torch.uint8)
    assert torch.equal(fit(image, 12), transforms.resize(image, [12, 12], antialias=True))


# --- tiers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_that_goes_on_reads_only_what_is_left_of_it(numbered, load, resident):
    loader = load(numbered(45), batch_size=8, resident=resident)
    whole = list(loader.batches(3))
    for start in range(7):
        rest = list(loader.batches(3, start))
        assert len(rest) == 6 - start
        assert all(torch.equal(a, b) for pair in zip(rest, whole[start:], strict=True) for a, b in zip(*pair, strict=True))
    assert labels_of(loader, 4) == labels_of(load(numbered(45), batch_size=8), 4), "the next one is whole"


@pytest.mark.parametrize("resident", [True, False])
def test_reading_takes_nothing_from_the_global_random_state(numbered, load, resident):
    before = torch.get_rng_state()
    loader = load(numbered(40), batch_size=8, resident=resident)
    assert len(list(loader.batches(0))) == len(loader) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_a_closed_loader_says_so(numbered, load):
    loader = load(numbered(8), resident=False)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(loader.batches(0))
