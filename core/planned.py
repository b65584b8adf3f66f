"""What a plan says: the dataset, the steps, the transfer, the groups, the memory that it will take."""

from __future__ import annotations

from pydantic import BaseModel

from core.data.tiers import TierName
from core.events import GroupsData, TransferData
from core.models.features import FeatureFacts
from core.places import PinnedWeights
from core.spec import JobSpec, Task
from core.trial import Memory


class DatasetFacts(BaseModel):
    """The dataset as it was found; `size` is (height, width) where all images are alike.

    `classes` are the names of the model's outputs: of a regression those of its numbers.
    """

    source: str
    task: Task
    classes: list[str]
    channels: int
    size: tuple[int, int] | None
    train: int
    validation: int
    fingerprint: str


class PreprocessingFacts(BaseModel):
    """How images reach the model: float32 [B, 3, size, size], (x / 255 - mean) / std."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SplitTier(BaseModel):
    """Where the decoded images of a split are held, and by which numbers that was decided."""

    tier: TierName
    bytes: int
    why: str


class Steps(BaseModel):
    """Optimizer steps."""

    per_epoch: int
    total: int


class Plan(BaseModel):
    """What a spec means on this machine, before a step is trained."""

    spec: JobSpec
    dataset: DatasetFacts
    preprocessing: PreprocessingFacts
    tiers: dict[str, SplitTier]
    """Of `train` and `validation`."""
    transfer: TransferData | None
    """None while nobody here can tell: the file of weights was not fetched yet, and does not begin with what is in it."""
    pinned: PinnedWeights | None
    """The pretrained weights, as far as it is known here where they are."""
    groups: GroupsData
    steps: Steps
    lr: dict[str, list[tuple[int, float]]]
    """Per group its curve as (step, lr): see `core.optimizer.curves.Curve.points`."""
    momentum: dict[str, list[tuple[int, float]]]
    """The same of momentum, or of the first of betas, for the groups whose schedule moves it."""
    features: FeatureFacts | None
    """Whether what is frozen is run once; None where nothing is frozen."""
    memory: Memory
    warnings: list[str]
