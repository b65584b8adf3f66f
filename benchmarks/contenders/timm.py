"""timm's train.py. The script is not in its package, only its parts are: they are put together here as the script does it.

That is: its loader (uint8 in its fast collate, normalised by its prefetcher), its classification task, its optimizer factory, the
loss read by `.item()` into its AverageMeter each iteration, a line in the log each 50, its scheduler, and after each epoch its
validation and its CheckpointSaver. Neither augmentation nor label smoothing: the others have none. Without worker processes. Its
loader would leave out what is left at the end of an epoch, less than a batch; here it trains on that as the others do.
"""

import logging
import time
from argparse import Namespace
from typing import Any

import torch
from contenders.turns import Turns, contend
from contenders.workloads import BATCH, RATE, SEED, Split
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, CheckpointSaver, accuracy, random_seed, setup_default_logging
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.resolve import IMAGENET

LOG_INTERVAL = 50
CPU = torch.device("cpu")
_logger = logging.getLogger("train")


class Pixels(Dataset[tuple[Tensor, int]]):
    """A split as uint8, decoded; the transform that the loader gives it has nothing left to do."""

    transform: Any = None

    def __init__(self, split: Split) -> None:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        self.pixels = ((split.images * std + mean) * 255).round().to(torch.uint8)
        self.labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], self.labels[index]


def train_one_epoch(epoch: int, task: Any, loader: Any, optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, float]:
    """The loop of the script, without what is off: no clipping, no EMA, no accumulation, one process."""
    update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
    task.get_trainable_module().train()
    steps, samples = len(loader), 0
    updates = epoch * steps
    data_start = update_start = time.time()
    optimizer.zero_grad()
    for index, (images, labels) in enumerate(loader):
        data_time.update(time.time() - data_start)
        loss = task(images, labels)["loss"]
        loss.backward(create_graph=False)
        optimizer.step()
        losses.update(loss.item(), len(images))
        samples += len(images)
        updates += 1
        optimizer.zero_grad()
        task.update_ema(step=updates)
        now = time.time()
        update_time.update(now - update_start)
        update_start = now
        if index % LOG_INTERVAL == 0 or index == steps - 1:
            rates = [group["lr"] for group in optimizer.param_groups]
            _logger.info(
                f"Train: {epoch} [{index}/{steps}] Loss: {losses.val:#.3g} ({losses.avg:#.3g}) Time: {update_time.val:.3f}s, "
                f"{samples / update_time.val:.2f}/s LR: {sum(rates) / len(rates):.3e} Data: {data_time.val:.3f}"
            )
        scheduler.step_update(num_updates=updates, metric=losses.avg)
        samples, data_start = 0, time.time()
    return {"loss": losses.avg}


@torch.no_grad()
def validate(model: nn.Module, loader: Any, loss_fn: nn.Module) -> dict[str, float]:
    """The script's: loss, top1 and top5."""
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    model.eval()
    for images, labels in loader:
        logits = model(images)
        loss = loss_fn(logits, labels)
        first, fifth = accuracy(logits, labels, topk=(1, 5))
        losses.update(loss.item(), len(images))
        top1.update(first.item(), len(images))
        top5.update(fifth.item(), len(images))
    return {"loss": losses.avg, "top1": top1.avg, "top5": top5.avg}


def train(turns: Turns) -> None:
    """`--opt adam --lr 1e-3 --no-aug --smoothing 0 --sched cosine -j 0`."""
    setup_default_logging()
    random_seed(SEED)
    splits, size = turns.data(), turns.workload.size
    mean, std = IMAGENET
    common = {"input_size": (3, size, size), "batch_size": BATCH, "num_workers": 0, "device": CPU, "mean": mean, "std": std}
    training = create_loader(Pixels(splits["train"]), is_training=True, no_aug=True, **common)
    training.loader.batch_sampler.drop_last = False
    validation = create_loader(Pixels(splits["validation"]), is_training=False, **common)
    task = ClassificationTask(turns.workload.build(), nn.CrossEntropyLoss(), device=CPU)
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, opt="adam", lr=RATE, weight_decay=0.0)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=turns.task.epochs, updates_per_epoch=len(training)
    )
    saver = CheckpointSaver(model, optimizer, args=Namespace(model="model"), checkpoint_dir=".", recovery_dir=".", task=task)
    turns.after_each_step()
    turns.begin(len(training))
    for epoch in range(epochs):
        train_one_epoch(epoch, task, training, optimizer, scheduler)
        figures = validate(task.get_eval_model(), validation, nn.CrossEntropyLoss())
        saver.save_checkpoint(epoch, metric=figures["top1"])
        scheduler.step(epoch + 1, figures["top1"])


if __name__ == "__main__":
    contend(train)
