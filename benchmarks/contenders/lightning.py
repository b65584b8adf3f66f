"""Lightning, as its documentation has one begin: a LightningModule with `self.log`, a Trainer with what it has by default."""

import lightning
import torch
from contenders.turns import Turns, contend
from contenders.workloads import BATCH, RATE
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """The model with its loss, its optimizer and what is logged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss, logged."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy, logged."""
        images, labels = batch
        logits = self.model(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As in the documentation."""
        return torch.optim.Adam(self.parameters(), lr=RATE)


def train(turns: Turns) -> None:
    """With its validation, its progress bar, its logger and its checkpoint after each epoch."""
    splits = turns.data()
    training = DataLoader(TensorDataset(*splits["train"]), batch_size=BATCH, shuffle=True)
    validation = DataLoader(TensorDataset(*splits["validation"]), batch_size=BATCH)
    module = Classifier(turns.workload.build())
    turns.after_each_step()
    turns.begin(len(training))
    lightning.Trainer(max_epochs=turns.task.epochs, accelerator="cpu", devices=1).fit(module, training, validation)


if __name__ == "__main__":
    contend(train)
