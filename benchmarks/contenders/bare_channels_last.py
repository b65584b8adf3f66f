"""The bare loop with images and weights in the memory format that convolutions like best on some machines."""

import torch
from contenders import bare
from contenders.turns import Turns, contend


def train(turns: Turns) -> None:
    """Channels last."""
    bare.train(turns, torch.channels_last)


if __name__ == "__main__":
    contend(train)
