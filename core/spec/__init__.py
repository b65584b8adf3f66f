"""The job spec: what a person sends. Imports no torch, so that the api and the client can read it.

A named thing (model, loss, optimizer) is `{"name": …}` plus the keywords of that thing's own constructor; here they are only
held, `core.keywords` checks them against the signature. Every default stands in this package and nowhere else.
"""

from core.spec.checkpoint import CheckpointSpec, EveryMinutes, EverySteps
from core.spec.data import Augmentation, DatasetSpec, LoaderSpec
from core.spec.divergence import DivergenceSpec, SpikeSpec
from core.spec.faults import faults_of
from core.spec.homes import meant
from core.spec.job import JobSpec, ResourcesSpec
from core.spec.model import ModelSpec, PretrainedSpec
from core.spec.optimizer import SELECTORS, GroupSpec, Hyperparameters, OptimizerSpec, Selector, UntilEpoch
from core.spec.schedule import ScheduleSpec
from core.spec.training import DEFAULT_LOSSES, EarlyStoppingSpec, LossSpec, TrainingSpec
from core.spec.values import MOST_LABELS, Label, Name, Named, Part, Priority, Task

__all__ = [
    "DEFAULT_LOSSES", "MOST_LABELS", "SELECTORS", "Augmentation", "CheckpointSpec", "DatasetSpec", "DivergenceSpec",
    "EarlyStoppingSpec", "EveryMinutes", "EverySteps", "GroupSpec", "Hyperparameters", "JobSpec", "Label", "LoaderSpec",
    "LossSpec", "ModelSpec", "Name", "Named", "OptimizerSpec", "Part", "PretrainedSpec", "Priority", "ResourcesSpec",
    "ScheduleSpec", "Selector", "SpikeSpec", "Task", "TrainingSpec", "UntilEpoch", "faults_of", "meant",
]  # fmt: skip
