"""The model, and where its pretrained weights come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from core.spec.values import Name, Named, Part, Text, storable


class ModelSpec(Named):
    """The architecture, built for the dataset's classes."""

    name: Name = Field(description="`torchvision:NAME`, `timm:NAME` or `python:MODULE:CLASS`.", examples=["torchvision:resnet50"])


class PretrainedSpec(Part):
    """Where weights come from, and how their names map on to the model's. docs/transfer.md explains each key."""

    source: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(storable)] = Field(
        description=(
            "`torchvision:NAME/WEIGHTS`, `timm:NAME`, `file:PATH` (below the inputs directory; .safetensors, .pt, .pth), "
            "`job:ID`, `job:ID@best`, `@last` or `@STEP`, `https://HOST/PATH` (with `sha256`), "
            "or `hf:ORG/REPO`, `/FILE` and `@REVISION` after it as you like."
        ),
        examples=[
            "torchvision:resnet50/IMAGENET1K_V2",
            "timm:resnet18.a1_in1k",
            "file:lite0.pth",
            "job:12",
            "hf:timm/resnet18.a1_in1k",
        ],
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)] | None = Field(
        default=None, description="Of the file, 64 digits in hex; with it no other file is taken. `https:` needs it."
    )
    container: Name | None = Field(
        default=None,
        description="The state dict to take of a .pt or .pth file that holds more than one, or only an average (`model_ema`); "
        "dots lead to a nested one.",
    )
    select: Name | None = Field(
        default=None, description="Take only the source's tensors below this name (`teacher.backbone`), and leave it off."
    )
    rename: list[tuple[Text, Text]] = Field(
        default=[],
        max_length=1000,
        description="Ordered `[regex, replacement]` pairs, each applied by `re.sub` to every source key in turn.",
    )
    drop: list[Name] = Field(default=[], max_length=1000, description="Globs over the renamed keys: these are not loaded.")
    suffix_match: bool = Field(
        default=False,
        description="Bring together names of which one is the end of the other (`conv1.weight`, `trunk.conv1.weight`), "
        "the longest first; two that fit equally well are an error.",
    )
    exclude: list[Name] = Field(
        default=[],
        max_length=1000,
        description="Globs over the model's own keys: these start anew whatever the source has; `min_loaded` leaves them out.",
    )
    head: Literal["auto", "keep", "reset", "rows"] = Field(
        default="auto",
        description=(
            "`auto` loads it where the source tells the same classes apart, else starts it anew; `keep` must fit; `reset` "
            "starts it anew; `rows` takes the rows of the classes that both sides have."
        ),
    )
    classes: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="The source's classes, in the order of its head's rows, where it does not say.",
    )
    class_map: dict[Name, Name | Annotated[int, Field(ge=0)]] = Field(
        default={},
        max_length=100_000,
        description="For `rows`: a class of the dataset, and what the source calls it, or the number of its row.",
    )
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="Rows and columns of patches in the source's position embedding, where it is not square."
    )
    min_loaded: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Share of the model's elements outside its head and `exclude` that must come from the source.",
    )
