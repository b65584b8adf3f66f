"""The published net of two convolutions for Fashion-MNIST: `2 Conv Layers net <100K parameters`, 0.925 on the test images.

Source: the table of benchmarks in https://github.com/zalandoresearch/fashion-mnist, which refers to
https://github.com/hardmaru/pytorch_notebooks (pytorch_tiny_custom_mnist_adam.ipynb): Adam at 1e-3, batches of 1000, 30 epochs, no
augmentation, 92.47 %. `job.json` beside this file is that recipe as a job.
"""

from torch import Tensor, nn


class TwoConvolutions(nn.Module):
    """83,466 parameters: two convolutions, each followed by max pooling, and one linear layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64 * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 [B, 3, 28, 28], whose channels are alike as the images are grey, to logits [B, num_classes]."""
        first = self.pool(self.conv1(images[:, :1]).relu())
        second = self.pool(self.conv2(first).relu())
        return self.fc(second.flatten(1))
