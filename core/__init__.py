"""A plain PyTorch transfer-learning library: it knows no HTTP, no SQL and no queue.

The five parts of a training script: a dataset and its batches by hyper-parameters (`data.datasets`, `data.batches`); `get_model`,
with pretrained weights copied where they match (`models.build`, `transfer.weights`); a loss by name (`loss.losses`); an optimizer
from a list of parameter groups (`optimizer.groups`); and `train_fn`, one epoch as a function (`training.loop`). `training.job` is
all five together, `plan` knows all that can be known before; `spec` and `events` are what goes in and what comes out.
"""
