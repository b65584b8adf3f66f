"""fastai, as its page on migrating from PyTorch has one begin: a Learner over PyTorch's DataLoaders.

The optimizer is torch's own Adam, for fastai's walks over the parameters one by one and is slower.
"""

from functools import partial

import torch
from contenders.turns import Turns, contend
from contenders.workloads import BATCH, RATE
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastai.callback.progress  # isort: skip  # noqa: F401 - the bar that every notebook has, by `from fastai.vision.all import *`


def train(turns: Turns) -> None:
    """With its validation after each epoch; what is frozen is so already, and its norms are not set free again."""
    splits = turns.data()
    training = DataLoader(TensorDataset(*splits["train"]), batch_size=BATCH, shuffle=True)
    validation = DataLoader(TensorDataset(*splits["validation"]), batch_size=BATCH)
    learner = Learner(
        DataLoaders(training, validation), turns.workload.build(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy,
        opt_func=partial(OptimWrapper, opt=torch.optim.Adam), train_bn=False,
    )  # fmt: skip
    turns.after_each_step()
    turns.begin(len(training))
    learner.fit(turns.task.epochs, lr=RATE)


if __name__ == "__main__":
    contend(train)
