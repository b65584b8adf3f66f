"""Targets in the form that a loss takes, and outputs as what they predict.

A dataset has class numbers, int64 [B], or float32 [B, K]: labels that are 0 or 1, or numbers. That is what a loader gives, and
what a validation is measured on; a loss that takes them otherwise gets them so by `Converting`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["index", "dense", "signs", "lists"]
"""Class numbers, int64 [B]; float32 [B, K], of classes one-hot; the same with -1 for 0; or the numbers of the labels that an
image has, int64 [B, K], filled up with -1 (torch.nn.MultiLabelMarginLoss)."""


def as_targets(labels: Tensor, form: Form, outputs: int) -> Tensor:
    """Labels of a dataset in another form, for so many outputs; nothing waits for the device.

    Dense ones may be mixed (mixup): shares of classes. As `lists` they cannot be told, and as `index` neither.
    """
    if form == "index":
        return labels
    dense = labels
    if not labels.is_floating_point():
        dense = (labels[:, None] == torch.arange(outputs, device=labels.device)).to(torch.float32)
    if form == "dense":
        return dense
    if form == "signs":
        return 2 * dense - 1
    has = dense > 0.5
    first = torch.argsort(has.to(torch.uint8), dim=1, descending=True, stable=True)
    return torch.where(torch.arange(outputs, device=labels.device) < has.sum(dim=1, keepdim=True), first, -1)


class Converting(nn.Module):
    """A loss of outputs [B, K] that is given targets as a dataset has them, and takes them in a form of its own."""

    def __init__(self, loss: nn.Module, form: Form) -> None:
        super().__init__()
        self.loss = loss
        self.form = form

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What the loss says of them."""
        value: Tensor = self.loss(outputs, as_targets(labels, self.form, outputs.shape[1]))
        return value


def predictions(loss: nn.Module, outputs: Tensor) -> Tensor:
    """Outputs on the scale of numeric targets: what the loss takes for a logarithm or a logit is made the number itself."""
    for part in loss.modules():
        if isinstance(part, nn.PoissonNLLLoss) and part.log_input:
            return outputs.exp()
        if isinstance(part, nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss):
            return outputs.sigmoid()
    return outputs
