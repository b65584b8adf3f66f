"""What works, but may not be what was meant: the warnings of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from core.errors import listed
from core.events import TransferData
from core.models.norms import of_another_kind
from core.optimizer.assignment import Group
from core.spec import JobSpec
from core.transfer.shortfall import shortfall


def of_spec(spec: JobSpec, transfer: TransferData | None, groups: list[Group], batches: int) -> Iterator[str]:
    """What works, but may not be what was meant."""
    if transfer is None:
        yield "the weights are not here yet: what is loaded is checked by the worker, once it has fetched them"
    else:
        yield from _transfer_warnings(spec, transfer, groups)
    for name, group in zip(spec.optimizer.group_names, spec.optimizer.groups, strict=True):
        given = [*group.keywords, *(["schedule"] if group.schedule else [])]
        if group.until_epoch is None and group.freeze and given:
            yield f"group '{name}' is frozen: its {', '.join(given)} has no effect"
        if group.until_epoch is not None and group.until_epoch >= spec.training.epochs:
            yield f"group '{name}' is frozen for {group.until_epoch} of {spec.training.epochs} epochs: it never trains"
    if spec.training.divergence.rolls_back and spec.checkpoint.keep_last == 1:
        yield (
            "a rollback goes to a checkpoint from before the trouble, and one alone is kept: where that is too late, the job "
            "begins anew; set checkpoint.keep_last to 2"
        )
    if batches < spec.training.accumulate:
        yield f"an epoch has {batches} batches, fewer than the {spec.training.accumulate} of a step: each epoch is one step"
    stopping = spec.training.early_stopping
    if stopping is not None and stopping.patience >= spec.training.epochs:
        yield f"early stopping waits for {stopping.patience} epochs, but the job has {spec.training.epochs}: it never stops"


def _transfer_warnings(spec: JobSpec, transfer: TransferData, groups: list[Group]) -> Iterator[str]:
    if spec.pretrained is None:
        yield "no pretrained weights are named: the model trains from scratch"
    elif not transfer.head:
        yield "the head cannot be told from the rest, because the model does not take num_classes"
    elif (
        any(one.status == "reinit" and one.shape == one.source_shape for one in transfer.targets)
        and spec.pretrained.head == "auto"
    ):
        yield (
            "the source's head has the right shape, but starts anew, for its classes are not known to be these; "
            "'keep' in /pretrained/head would load it, 'rows' those that both have"
        )
    if short := shortfall(transfer, spec.model.name):
        yield short
    loaded = {one.key for one in transfer.targets if one.status in ("loaded", "adapted")}
    frozen = [one.name for group in groups if group.freeze and group.until_epoch is None for one in group.members]
    if stuck := [name for name in frozen if name not in loaded]:
        yield f"frozen at random values, as nothing is loaded into them: {listed(stuck)}"


def of_ranks(spec: JobSpec, model: nn.Module) -> Iterator[str]:
    """What is different on several GPUs."""
    gpus = spec.resources.gpus or 1
    if spec.loader.batch_size < gpus:
        yield f"loader.batch_size is that of all {gpus} GPUs together: with {spec.loader.batch_size} some of them have no sample"
    if gpus > 1 and (odd := of_another_kind(model)):
        yield f"these norms see the samples of one GPU alone, since they are not torch's own: {listed(odd)}"
