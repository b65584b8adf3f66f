"""The operations of torchvision.transforms.v2 that a spec may name, and the keywords of each; why the others are refused."""

from __future__ import annotations

import enum
import inspect
import warnings
from typing import Any

from torchvision.transforms import v2

from core.errors import Fault, SpecError, did_you_mean
from core.keywords import check_keywords, keyword_defaults
from core.spec import Augmentation

_BOXES = "works on bounding boxes or key points, which these images do not have"
_TYPES = "converts types; here images are tensors from 0 to 1"
_SIZES = "gives each image a size of its own, but a batch has one; use RandomResizedCrop, or RandomAffine with a scale"
_OTHERS = "takes other transforms, which are not served; list those that you mean, each has its own p"
REFUSED = {
    **dict.fromkeys(("ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "RandomIoUCrop"), _BOXES),
    **dict.fromkeys(("SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode"), _BOXES),
    **dict.fromkeys(("ConvertImageDtype", "PILToTensor", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor"), _TYPES),
    **dict.fromkeys(("RandomResize", "RandomShortestSize", "RandomZoomOut", "ScaleJitter"), _SIZES),
    **dict.fromkeys(("Compose", "RandomApply", "RandomChoice", "RandomOrder"), _OTHERS),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "makes several images of one"),
    "CutMix": "mixes samples; set training.cutmix",
    "JPEG": "needs an encoder that torchvision has deprecated",
    "Lambda": "takes a function, which JSON cannot carry",
    "LinearTransformation": "takes a matrix as large as an image is, squared",
    "MixUp": "mixes samples; set training.mixup",
    "Normalize": "is done afterwards, with the mean and std of the pretrained weights",
    "UniformTemporalSubsample": "works on videos",
}
"""Operations of torchvision that make no sense here, and why."""
_REFUSED_KEYWORDS = {
    "expand": "it gives each image a size of its own, but a batch has one; leave it out",
    "inplace": "what is done in place is decided here; leave it out",
}
_UNANNOTATED = {("RandomAffine", "degrees"), ("RandomErasing", "value"), ("RandomRotation", "degrees")}
"""Keywords whose annotation does not say what they take: their constructor checks them."""
_NO_COLOUR = "pixels are from 0 to 1: send such a number, or one per channel"


def names() -> list[str]:
    """The operations of torchvision.transforms.v2, those that are refused among them."""
    found = {name: value for name, value in vars(v2).items() if inspect.isclass(value)}
    return sorted(name for name, value in found.items() if issubclass(value, v2.Transform) and value is not v2.Transform)


def keywords_of(name: str) -> dict[str, Any]:
    """The keywords of an operation with their defaults, as JSON has them."""
    found = keyword_defaults(getattr(v2, name), _REFUSED_KEYWORDS)
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in found.items()}


def transform_of(one: Augmentation, pointer: str) -> Any:
    """The transform of torchvision. Raises SpecError at or below `pointer`."""
    known = [name for name in names() if name not in REFUSED]
    if one.name in REFUSED:
        raise SpecError.at(f"{pointer}/name", f"{one.name} {REFUSED[one.name]}")
    if one.name not in known:
        raise SpecError.at(f"{pointer}/name", f"torchvision.transforms.v2 has no '{one.name}'.{did_you_mean(one.name, known)}")
    target = getattr(v2, one.name)
    checked = {key: value for key, value in one.keywords.items() if (one.name, key) not in _UNANNOTATED}
    faults = check_keywords(target, checked, pointer, refused=_REFUSED_KEYWORDS)
    for key, parameter in inspect.signature(target).parameters.items():
        if key not in one.keywords and parameter.default is parameter.empty:
            faults.append(Fault(f"{pointer}/{key}", f"{one.name} needs this keyword"))
    faults += [Fault(f"{pointer}/{key}", _NO_COLOUR) for key in ("fill", "value") if not _is_colour(one.keywords.get(key))]
    if faults:
        raise SpecError(*faults)
    keywords = {key: v2.AutoAugmentPolicy(value) if key == "policy" else value for key, value in one.keywords.items()}
    try:
        with warnings.catch_warnings(action="error"):
            return target(**keywords)
    except Exception as error:
        raise SpecError.at(pointer, f"{one.name} cannot be made: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """The first line of what torchvision says."""
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def _is_colour(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, int | float) and _is_colour(one) for one in value)
    return value is None or value == "random" or (isinstance(value, int | float) and 0 <= value <= 1)
