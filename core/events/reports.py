"""The two reports that a job begins with: what became of each tensor, and which parameter is in which group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from core.events.values import Data

TargetStatus = Literal["loaded", "adapted", "reinit", "missing", "excluded", "own"]
"""As it came; made to fit by an adapter; there, but started anew; not there; not wanted; computed by the model."""


SourceStatus = Literal["used", "dropped", "unexpected"]
"""Loaded or adapted; kept out by a rule, the head or `exclude`; of no use to this model."""


Adapter = Literal["head_rows", "in_channels", "position_embedding", "patch_embedding", "relative_bias"]


class TargetEntry(BaseModel):
    """One parameter or persistent buffer of the model, and what became of it."""

    key: str
    buffer: bool = Field(default=False, description="A persistent buffer, and no parameter.")
    status: TargetStatus
    shape: list[int]
    source_key: str | None = None
    source_shape: list[int] | None = None
    reason: str | None = Field(default=None, description="Why it was not loaded, or what was done to load it.")
    cast: str | None = Field(default=None, description="`float16 -> float32` where the dtypes differ.")
    adapter: Adapter | None = Field(default=None, description="What made the source's tensor fit, where it is adapted.")


class SourceEntry(BaseModel):
    """One tensor of the source, and what became of it."""

    key: str
    status: SourceStatus
    shape: list[int]
    renamed: str | None = Field(default=None, description="Its name after all steps, where they changed it.")
    reason: str | None = None


class Count(BaseModel):
    """Tensors, and the elements in them."""

    tensors: int = 0
    elements: int = 0


class ModuleCount(BaseModel):
    """The transfer of one top-level module."""

    module: str
    loaded: Count
    adapted: Count = Count()
    total: Count


class TransferStep(BaseModel):
    """One thing that was done to the source's names before they were compared with the model's."""

    kind: Literal["container", "wrapper", "select", "rename", "drop", "prefix", "suffix"]
    detail: str = Field(description="The rule, or what was found: `module`, `+encoder.`, `^encoder\\. -> `.")
    keys: int = Field(description="How many names it changed, or took out.")


class TransferData(Data):
    """The transfer report: each target and each source entry once, with one status."""

    kind = "transfer"
    source: str | None = Field(description="As the spec has it; null when the job trains from scratch.")
    format: Literal["safetensors", "torch", "torchvision", "timm"] | None = None
    sha256: str | None = None
    model: str | None = Field(
        default=None, description="What the source is the weights of, where it says: `torchvision:resnet18`."
    )
    head: list[str] = Field(default=[], description="The modules whose shape depends on the number of classes.")
    loaded_share: float = Field(
        description="Share of the elements that came from the source, of those outside the head, `exclude` and `own`."
    )
    totals: dict[TargetStatus, Count]
    source_totals: dict[SourceStatus, Count]
    casts: dict[str, Count] = Field(default={}, description="What was loaded into another dtype: `float16 -> float32`.")
    modules: list[ModuleCount]
    steps: list[TransferStep] = Field(default=[], description="In order, what brought the source's names to the model's.")
    targets: list[TargetEntry]
    sources: list[SourceEntry]


class GroupRow(BaseModel):
    """One parameter group as it trains."""

    name: str
    of: str = Field(
        description="The group of the spec that it is, or is a part of (`layer_decay` and `no_decay` make several of one)."
    )
    hyperparameters: dict[str, Any] = Field(description="lr, weight_decay, momentum, betas: what the optimizer's group holds.")
    schedule: dict[str, Any] | None = Field(
        default=None, description="That of its lr, with everything filled in; null where lr is constant."
    )
    frozen: bool = Field(description="In the first epoch.")
    until_epoch: int | None = Field(description="Where it is frozen for a time: the first epoch that trains it, from 0.")
    tensors: int
    elements: int
    parameters: list[str] = Field(description="Names; tied parameters once, under their first name.")


class ParameterRow(BaseModel):
    """One parameter, however many names it has."""

    names: list[str] = Field(description="More than one where it is tied.")
    group: str
    shape: list[int]
    elements: int
    depth: int = Field(description="0 is the stem, each block one more; the head is the deepest.")
    roles: list[str] = Field(description="`head` or `backbone`; `norm`, `bias`.")
    type: str = Field(description="The class of the module that owns it.")
    frozen: Literal["group", "model"] | None = Field(
        description="By its group, in the first epoch, or by the model's own code, for good; null where it trains."
    )


class GroupsData(Data):
    """The parameter groups: each parameter in exactly one."""

    kind = "groups"
    optimizer: str
    groups: list[GroupRow]
    executed_groups: int = Field(description="Groups that the optimizer runs, once equal ones are one.")
    fused: bool
    runs: str | None = Field(
        default=None,
        description="Where and how the model runs: `cuda:0, bf16, channels_last`; null in a plan: it cannot tell.",
    )
    parameters: list[ParameterRow] = Field(description="Each once, group by group.")


def present(
    table: dict[str, Any], epoch: int, lr: Mapping[str, float], *, step: int = 0, adjusted: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The data of a `groups` event as it stands in `epoch` (from 0), after `step` steps.

    `lr` is that of the last of these steps by group, and `adjusted` the data of the folded events since, in order. `frozen` is
    that of now, and each group has `present`: its hyper-parameters now.
    """
    groups = []
    for row in table["groups"]:
        own = [one for one in adjusted if one["group"] in (row["name"], row["of"])]
        new = {key: (one["step"], change["to"]) for one in own for key, change in one["changes"].items()}
        values = {**row["hyperparameters"], **{key: to for key, (_, to) in new.items() if key != "freeze"}}
        if new.get("lr", (-1, None))[0] < step:  # the last step has used it, and a schedule has gone on from it
            values["lr"] = lr.get(row["name"], values["lr"])
        thawed = row["until_epoch"] is not None and epoch >= row["until_epoch"]
        frozen = new["freeze"][1] if "freeze" in new else row["frozen"] and not thawed
        until = None if "freeze" in new else row["until_epoch"]
        groups.append({**row, "frozen": frozen, "until_epoch": until, "present": values})
    frozen_now = {row["name"]: "group" if row["frozen"] else None for row in groups}
    parameters = [row if row["frozen"] == "model" else {**row, "frozen": frozen_now[row["group"]]} for row in table["parameters"]]
    return {**table, "groups": groups, "parameters": parameters}
