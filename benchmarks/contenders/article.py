"""The article's own loop: a DataLoader, an Adam group for each parameter, `.item()` and a print per iteration."""

from contenders.turns import Turns, contend
from contenders.workloads import BATCH
from loop import article_loop


def train(turns: Turns) -> None:
    """It knows no validation."""
    images, labels = turns.data()["train"]
    loop = article_loop(turns.workload.build(), images, labels, turns.task.epochs)
    turns.begin(-(-len(labels) // BATCH))
    for _ in loop:
        turns.iteration()


if __name__ == "__main__":
    contend(train)
