"""The Hugging Face Trainer, with a model that returns its loss, and what TrainingArguments has by default.

Its default optimizer is the fused AdamW at a weight decay of 0, which is Adam.
"""

from typing import Any

from contenders.turns import Turns, contend
from contenders.workloads import BATCH, RATE, Split
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments


class WithLoss(nn.Module):
    """The model as the Trainer wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Any]]):
    """A split as the rows that the Trainer's collator stacks."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.split.images[index], "labels": self.split.labels[index]}


def train(turns: Turns) -> None:
    """With its validation after each epoch; its checkpoints come each 500 steps, its log too."""
    splits = turns.data()
    arguments = TrainingArguments(
        output_dir="output", use_cpu=True, num_train_epochs=turns.task.epochs, learning_rate=RATE, eval_strategy="epoch",
        per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
    )  # fmt: skip
    trainer = Trainer(
        WithLoss(turns.workload.build()), arguments, train_dataset=Rows(splits["train"]), eval_dataset=Rows(splits["validation"])
    )
    turns.after_each_step()
    turns.begin(-(-len(splits["train"].labels) // BATCH))
    trainer.train()


if __name__ == "__main__":
    contend(train)
