"""Operations of torchvision.transforms.v2 on a batch in which each image has draws of its own.

torchvision draws one set of parameters per call, which a batch would share. Here a transform of its is the description: its
constructor has checked and filled in the keywords, and what it would draw for each image by itself is taken from `draws`, in
the same ranges; what it then does is done to all images at once, with its arithmetic. A transform without a kernel of its own
works too, image by image: `OneByOne`.

Images are float32 [B, C, H, W] from 0 to 1, draws float64 [B, columns], each uniform from 0 up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

_TRIES = 10
"""How often torchvision draws a rectangle anew that does not fit, before it gives up."""

_GRID_MODES = ("nearest", "bilinear")
"""How torchvision samples tensors through a grid."""


class Kernel(Protocol):
    """An operation in batch."""

    @property
    def transform(self) -> Any:
        """The transform of torchvision that it stands for."""
        ...

    @property
    def columns(self) -> int:
        """How many draws an image takes."""
        ...

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """A new batch, or the same one where nothing changes."""
        ...


def kernel_of(transform: Any) -> Kernel | None:
    """How the transform works in batch; None where it has to work image by image."""
    make = _KERNELS.get(type(transform))
    return make(transform) if make else None


@dataclass(frozen=True)
class Always:
    """What draws nothing: torchvision's own code takes a batch as it is."""

    transform: Any
    columns: int = 0

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """All images alike."""
        del draws
        done: Tensor = self.transform(images)
        return done


@dataclass(frozen=True)
class Sometimes:
    """What draws only whether it happens (`p`): torchvision's own code does it to all, and those that drew it take it."""

    transform: Any
    columns: int = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Happens where the draw is below `p`."""
        changed = self.transform.transform(images, self.transform.make_params([images]))
        return torch.where(_per_image(draws[:, 0] < self.transform.p), changed, images)


@dataclass(frozen=True)
class Crop:
    """RandomCrop: padded alike, then to each image its own window."""

    transform: Any
    columns: int = 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, C, *size]. Raises ValueError where the padded image is smaller than that."""
        given = self.transform
        height, width = given.size
        left, right, top, bottom = given.padding or (0, 0, 0, 0)
        if given.pad_if_needed:
            tall, wide = (
                max(0, side - have)
                for side, have in ((height, images.shape[2] + top + bottom), (width, images.shape[3] + left + right))
            )
            left, right, top, bottom = left + wide, right + wide, top + tall, bottom + tall
        if left or right or top or bottom:
            fill = given.fill if given.fill is None or isinstance(given.fill, int | float) else list(given.fill)
            images = functional.pad(images, [left, top, right, bottom], fill=fill, padding_mode=given.padding_mode)
        spare = images.shape[2] - height, images.shape[3] - width
        if min(spare) < 0:
            raise ValueError(f"a crop of {height} x {width} is larger than the image, {images.shape[2]} x {images.shape[3]}")
        rows = _below(draws[:, 0], spare[0] + 1)[:, None] + torch.arange(height, device=images.device)
        columns = _below(draws[:, 1], spare[1] + 1)[:, None] + torch.arange(width, device=images.device)
        return _taken(images, rows, columns)


@dataclass(frozen=True)
class ResizedCrop:
    """RandomResizedCrop: to each image a window of its own, resized bilinearly, as two products with weights along a side."""

    transform: Any
    columns: int = 2 * _TRIES + 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, C, *size]."""
        given = self.transform
        size = images.shape[2], images.shape[3]
        high, wide, fits = _rectangles(draws, size, given.scale, given.ratio, tall_first=False)
        fallback = _central(size, given.ratio)
        height = torch.where(fits, high, fallback[2])
        width = torch.where(fits, wide, fallback[3])
        top = torch.where(fits, _below(draws[:, -2], size[0] - height + 1), fallback[0])
        left = torch.where(fits, _below(draws[:, -1], size[1] - width + 1), fallback[1])
        rows = resize_weights(top, height, size[0], given.size[0], antialias=bool(given.antialias))
        columns = resize_weights(left, width, size[1], given.size[1], antialias=bool(given.antialias))
        return _along_both_sides(images, rows, columns)


@dataclass(frozen=True)
class Affine:
    """RandomAffine and RandomRotation: to each image a grid of its own. `draw` takes the transform, draws and (height, width)."""

    transform: Any
    draw: Callable[[Any, Tensor, tuple[int, int]], Motion]
    columns: int

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The same size."""
        given, (height, width) = self.transform, images.shape[2:]
        centre = [0.0, 0.0]
        if given.center is not None:
            centre = [one - side * 0.5 for one, side in zip(given.center, (width, height), strict=True)]
        matrices = inverse_affine(centre, self.draw(given, draws, (height, width)))
        return _sampled(images, matrices.to(images.dtype), _mode(given), given.fill)


@dataclass(frozen=True)
class Jitter:
    """ColorJitter: to each image its own factors, in its own order.

    Brightness, contrast and saturation are blends with black, with the mean grey and with the grey image: steps of one form.
    Hue is not; it is shifted once, for all images, between those steps that an image has before it and those after it.
    """

    transform: Any
    columns: int = 8

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Of grey images only brightness and contrast matter."""
        given, grey = self.transform, images.shape[1] == 1
        ranges = [given.brightness, given.contrast, None if grey else given.saturation, None if grey else given.hue]
        factors = [None if one is None else _between(draws[:, at], *one) for at, one in enumerate(ranges)]
        places = draws[:, 4:].argsort(dim=1).argsort(dim=1)  # of each of the four its place in the image's own order
        blends = [at for at in range(3) if factors[at] is not None]
        hue = factors[3]
        before = places < places[:, 3:] if hue is not None else torch.ones_like(places, dtype=torch.bool)
        images = _blended(images, factors, places, blends, before)
        if hue is not None:
            images = _blended(shift_hue(images, hue.to(images.dtype)), factors, places, blends, ~before)
        return images


@dataclass(frozen=True)
class Erase:
    """RandomErasing with a given value: to some images a rectangle of their own."""

    transform: Any
    columns: int = 2 * _TRIES + 3

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Where no rectangle fits the image stays as it is."""
        given, size = self.transform, (images.shape[2], images.shape[3])
        height, width, fits = _rectangles(draws, size, given.scale, given.ratio, tall_first=True)
        fits &= draws[:, -1] < given.p
        rows = _span(_below(draws[:, -3], size[0] - height + 1), height, size[0])
        columns = _span(_below(draws[:, -2], size[1] - width + 1), width, size[1])
        inside = (fits[:, None, None] & rows[:, :, None] & columns[:, None, :])[:, None]
        if len(given.value) not in (1, images.shape[1]):
            raise ValueError(f"value has {len(given.value)} numbers, but the images have {images.shape[1]} channels")
        return torch.where(inside, _colour(given.value, images), images)


@dataclass(frozen=True)
class Blur:
    """GaussianBlur: to each image its own sigma, along one side and then the other, mirrored at the edges."""

    transform: Any
    columns: int = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The same size. Raises ValueError where the kernel is larger than what can be mirrored."""
        given = self.transform
        sigma = _between(draws[:, 0], *given.sigma)
        across, down = given.kernel_size
        if across // 2 >= images.shape[3] or down // 2 >= images.shape[2]:
            raise ValueError(f"a kernel of {across} x {down} is too large for images of {images.shape[2]} x {images.shape[3]}")
        rows = _gaussian(sigma, down, images.shape[2])
        columns = _gaussian(sigma, across, images.shape[3])
        return _along_both_sides(images, rows, columns)


@dataclass(frozen=True)
class OneByOne:
    """Any transform of torchvision, on one image after the other, each with the global generators seeded by its own draw."""

    transform: Any

    def __call__(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Leaves the generators as they were. Raises ValueError where it gives images of several sizes."""
        devices = [images.device.index] if images.device.type == "cuda" else []
        # not torch.manual_seed, which keeps a stack trace each time for a CUDA that nobody has used yet
        generators = [torch.default_generator, *(torch.cuda.default_generators[one] for one in devices)]
        with torch.random.fork_rng(devices=devices):
            done = []
            for image, seed in zip(images, seeds, strict=True):
                for generator in generators:
                    generator.manual_seed(seed)
                done.append(self.transform(image))
        return torch.stack(done)


# --- rectangles ----------------------------------------------------------------------------------------------------------------


def _rectangles(
    draws: Tensor, size: tuple[int, int], scale: Any, ratio: Any, *, tall_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(height, width, whether one of the tries fitted) of each image, int64 and bool [B]; 0 where none did.

    An area by `scale`, and a ratio of sides, uniform in its logarithm: RandomErasing's is height to width (`tall_first`), and
    it must leave something; RandomResizedCrop's is width to height, and it may be all.
    """
    area = size[0] * size[1] * _between(draws[:, :_TRIES], *scale)
    sides = torch.exp(_between(draws[:, _TRIES : 2 * _TRIES], math.log(ratio[0]), math.log(ratio[1])))
    one, other = torch.sqrt(area * sides).round().long(), torch.sqrt(area / sides).round().long()
    high, wide = (one, other) if tall_first else (other, one)
    most = (size[0] - 1, size[1] - 1) if tall_first else size
    least = 0 if tall_first else 1
    fits = (high >= least) & (high <= most[0]) & (wide >= least) & (wide <= most[1])
    first = fits.int().argmax(dim=1, keepdim=True)  # the first of equal ones: the first that fits
    found = fits.gather(1, first).squeeze(1)
    return high.gather(1, first).squeeze(1) * found, wide.gather(1, first).squeeze(1) * found, found


def _central(size: tuple[int, int], ratio: Any) -> tuple[int, int, int, int]:
    """(top, left, height, width) that RandomResizedCrop takes where no try fitted."""
    (height, width), (low, high) = size, (min(ratio), max(ratio))
    tall, wide = height, width
    if width / height < low:
        tall = round(width / low)
    elif width / height > high:
        wide = round(height * high)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _span(begin: Tensor, length: Tensor, size: int) -> Tensor:
    """From `begin` on, so many: bool [B, size]."""
    at = torch.arange(size, device=begin.device)
    return (at >= begin[:, None]) & (at < (begin + length)[:, None])


def _taken(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of image b the pixels at rows[b] x columns[b]: [B, C, h, w]."""
    count, channels = images.shape[:2]
    tall = rows[:, None, :, None].expand(count, channels, rows.shape[1], images.shape[3])
    wide = columns[:, None, None, :].expand(count, channels, rows.shape[1], columns.shape[1])
    return images.gather(2, tall).gather(3, wide)


# --- weights along a side ------------------------------------------------------------------------------------------------------


def resize_weights(begin: Tensor, length: Tensor, size: int, to: int, *, antialias: bool) -> Tensor:
    """How the `to` pixels of a resized window are made of the `size` of a side: float32 [B, to, size], rows that add up to 1.

    `begin` and `length` (int64 [B]) are the window. The filter is a triangle that, with antialias, is as much wider as the window
    shrinks; what lies beyond the window does not count (Pillow's resampling, which torch.nn.functional.interpolate has too).
    """
    step = length / to  # float32, as torch has it
    reach = step.clamp(min=1.0) if antialias else torch.ones_like(step)
    centre = step[:, None] * (torch.arange(to, device=begin.device) + 0.5)
    at = torch.arange(size, device=begin.device) - begin[:, None]
    distance = (at[:, None, :] + 0.5 - centre[:, :, None]) / reach[:, None, None]
    weights = (1 - distance.abs()).clamp(min=0) * ((at >= 0) & (at < length[:, None]))[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def _gaussian(sigma: Tensor, taps: int, size: int) -> Tensor:
    """The same of torchvision's Gaussian kernel, mirrored at the ends without repeating them: float32 [B, size, size]."""
    limit = (taps - 1) / (2.0 * math.sqrt(2.0))
    at = torch.linspace(-limit, limit, taps, device=sigma.device)
    kernel = torch.softmax(-((at / sigma.to(at.dtype)[:, None]) ** 2), dim=1)
    weights = torch.zeros(len(sigma), size, size, device=sigma.device)
    pixels = torch.arange(size, device=sigma.device)
    for tap in range(taps):
        source = (pixels + tap - taps // 2).abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
        weights[:, pixels, source] += kernel[:, tap, None]  # of one tap no pixel has two
    return weights


def _along_both_sides(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows[b] @ image @ columns[b] transposed, of each channel."""
    return rows[:, None] @ (images @ columns.transpose(1, 2)[:, None])


# --- grids ---------------------------------------------------------------------------------------------------------------------


class Motion(NamedTuple):
    """How images move, each float64 [B]: angles in degrees, the translation in pixels."""

    angle: Tensor
    across: Tensor
    down: Tensor
    scale: Tensor
    lean_x: Tensor
    lean_y: Tensor


def inverse_affine(centre: Sequence[float], motion: Motion) -> Tensor:
    """Where a pixel comes from, as torchvision's _get_inverse_affine_matrix has it for one image: float64 [B, 2, 3].

    `centre` is (x, y) from the middle of the image.
    """
    turn, lean_x, lean_y = motion.angle.deg2rad(), motion.lean_x.deg2rad(), motion.lean_y.deg2rad()
    a = torch.cos(turn - lean_y) / torch.cos(lean_y)
    b = -(a * torch.tan(lean_x) + torch.sin(turn))
    c = torch.sin(turn - lean_y) / torch.cos(lean_y)
    d = torch.cos(turn) - c * torch.tan(lean_x)
    first, second, third, fourth = (one / motion.scale for one in (d, -b, -c, a))
    x, y = centre[0] + motion.across, centre[1] + motion.down
    return torch.stack(
        [first, second, centre[0] - first * x - second * y, third, fourth, centre[1] - third * x - fourth * y], dim=1
    ).view(-1, 2, 3)


def _sampled(images: Tensor, matrices: Tensor, mode: str, fill: Any) -> Tensor:
    """Each image through its matrix; what comes from outside is `fill`."""
    height, width = images.shape[2:]
    base = torch.ones(height, width, 3, dtype=images.dtype, device=images.device)
    base[..., 0] = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, width, device=images.device)
    base[..., 1] = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, height, device=images.device)[:, None]
    half = torch.tensor([0.5 * width, 0.5 * height], dtype=images.dtype, device=images.device)
    grid = base.view(1, height * width, 3) @ (matrices.transpose(1, 2) / half)
    grid = grid.view(-1, height, width, 2)
    if fill is None or (mode == "nearest" and fill == 0):
        return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    covered = torch.cat((images, torch.ones_like(images[:, :1])), dim=1)
    covered = grid_sample(covered, grid, mode=mode, padding_mode="zeros", align_corners=False)
    sampled, cover = covered[:, :-1], covered[:, -1:]
    colour = _colour(fill, images)
    if mode == "nearest":
        return torch.where(cover < 0.5, colour, sampled)
    return (sampled - colour) * cover + colour


def _draw_affine(given: Any, draws: Tensor, size: tuple[int, int]) -> Motion:
    nothing = torch.zeros_like(draws[:, 0])
    across = down = nothing
    if given.translate is not None:
        wide, tall = given.translate[0] * size[1], given.translate[1] * size[0]
        across, down = _between(draws[:, 1], -wide, wide).round(), _between(draws[:, 2], -tall, tall).round()
    scale = _between(draws[:, 3], *given.scale) if given.scale is not None else torch.ones_like(nothing)
    shear = given.shear or ()
    return Motion(
        _between(draws[:, 0], *given.degrees),
        across,
        down,
        scale,
        _between(draws[:, 4], *shear[:2]) if len(shear) >= 2 else nothing,
        _between(draws[:, 5], *shear[2:]) if len(shear) == 4 else nothing,
    )


def _draw_rotation(given: Any, draws: Tensor, size: tuple[int, int]) -> Motion:
    del size
    nothing = torch.zeros_like(draws[:, 0])
    angle = _between(draws[:, 0], *given.degrees) % 360
    return Motion(-angle, nothing, nothing, torch.ones_like(nothing), nothing, nothing)


# --- colours -------------------------------------------------------------------------------------------------------------------


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its hue moved by `shift` ([B], in turns).

    To HSV, and back by f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green, blue
    (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).
    """
    red, green, blue = images.unbind(1)
    low, high = images.aminmax(dim=1)
    span = high - low
    safe = torch.where(span == 0, 1.0, span)  # grey has no hue, and keeps its value whatever is taken for it
    sixth = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = torch.where(high == red, (green - blue) / safe, sixth) + 6 * shift[:, None, None]
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    turned = (offsets + sixth[:, None]).remainder(6)
    return high[:, None] - span[:, None] * torch.minimum(turned, 4 - turned).clamp(0, 1)


def _blended(images: Tensor, factors: list[Tensor | None], places: Tensor, blends: list[int], wanted: Tensor) -> Tensor:
    """The steps among `blends` that are `wanted` ([B, 4]) of an image, in its order, which `places` ([B, 4]) has."""
    if not blends:
        return images
    never = torch.full_like(places, 4)
    order = torch.where(wanted, places, never)[:, blends].argsort(dim=1)  # those that are not wanted come last
    ratios = torch.stack([torch.where(wanted[:, at], one, 1.0) for at in blends if (one := factors[at]) is not None], dim=1)
    kinds = torch.tensor(blends, device=images.device)
    for turn in range(len(blends)):
        now = order[:, turn : turn + 1]
        ratio = ratios.gather(1, now).squeeze(1).to(images.dtype)
        images = _blend(images, ratio, kinds[now.squeeze(1)], blends)
    return images


def _blend(images: Tensor, ratio: Tensor, kind: Tensor, kinds: list[int]) -> Tensor:
    """Ratio * image + (1 - ratio) * other, from 0 to 1: black, the mean grey, or the grey image, by `kind` (0, 1, 2)."""
    ratio = _per_image(ratio)
    scaled = images * ratio
    if kinds != [0]:
        grey = functional.rgb_to_grayscale(images) if images.shape[1] == 3 else images
        other = grey
        if 1 in kinds:
            other = torch.where(_per_image(kind == 1), grey.mean(dim=(1, 2, 3), keepdim=True), grey)
        share = (1 - ratio) * _per_image(kind > 0)
        scaled += other * share
    return scaled.clamp_(0, 1)


# --- small things --------------------------------------------------------------------------------------------------------------


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draws


def _below(draws: Tensor, ends: Tensor | int) -> Tensor:
    """Whole numbers from 0 up to `ends`, which is not among them."""
    return (draws * ends).long()


def _colour(values: Any, images: Tensor) -> Tensor:
    given = values if isinstance(values, list | tuple) else [values]
    return torch.tensor(given, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)


def _erasing(transform: Any) -> Kernel | None:
    return None if transform.value is None else Erase(transform)  # noise for each pixel: image by image


def _resized_crop(transform: Any) -> Kernel | None:
    return ResizedCrop(transform) if _mode(transform) == "bilinear" else None


def _affine(transform: Any) -> Kernel | None:
    return Affine(transform, _draw_affine, 6) if _mode(transform) in _GRID_MODES else None


def _rotation(transform: Any) -> Kernel | None:
    """Quarter turns are exact in torchvision, which a grid is not: a fixed angle may be one."""
    low, high = transform.degrees
    return Affine(transform, _draw_rotation, 1) if low < high and _mode(transform) in _GRID_MODES else None


def _mode(transform: Any) -> str:
    return str(getattr(transform.interpolation, "value", transform.interpolation))


_KERNELS: dict[type, Callable[[Any], Kernel | None]] = {
    **dict.fromkeys((v2.CenterCrop, v2.Grayscale, v2.Identity, v2.Pad, v2.Resize, v2.RGB), Always),
    **dict.fromkeys(
        (
            v2.RandomAdjustSharpness, v2.RandomAutocontrast, v2.RandomEqualize, v2.RandomGrayscale, v2.RandomHorizontalFlip,
            v2.RandomInvert, v2.RandomPosterize, v2.RandomSolarize, v2.RandomVerticalFlip,
        ),
        Sometimes,
    ),
    v2.ColorJitter: Jitter,
    v2.GaussianBlur: Blur,
    v2.RandomAffine: _affine,
    v2.RandomCrop: Crop,
    v2.RandomErasing: _erasing,
    v2.RandomResizedCrop: _resized_crop,
    v2.RandomRotation: _rotation,
}  # fmt: skip
