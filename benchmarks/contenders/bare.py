"""As little as training can be: tensors in memory, one fused group, no loss ever looked at."""

import torch
from contenders.turns import Turns, contend
from contenders.workloads import BATCH
from loop import bare_loop


def train(turns: Turns, memory_format: torch.memory_format = torch.contiguous_format) -> None:
    """In either memory format."""
    images, labels = turns.data()["train"]
    model = turns.workload.build().to(memory_format=memory_format)
    loop = bare_loop(model, images.contiguous(memory_format=memory_format), labels, turns.task.epochs)
    turns.begin(-(-len(labels) // BATCH))
    for _ in loop:
        turns.iteration()


if __name__ == "__main__":
    contend(train)
