"""What it costs on a GPU to tell every loss: our loop beside one that waits for each, and beside a bare one.

python benchmarks/streaming_cuda.py                     about a minute; needs a CUDA device
python benchmarks/streaming_cuda.py resnet50 --size 224

  ours      `core.training.job.fit`: each loss yielded, brought off the device by the ring of `core.training.readback`
  waiting   tensors on the device, one fused Adam group, `loss.item()` in each iteration
  bare      the same without it: no loss is ever looked at

All three in float32, with images in rows, and with the kernels that cuDNN finds fastest: what is compared is the wait alone.
Each runs whole epochs, one after the other in turns, for their work overlaps on the device and cannot be told apart within an
iteration. A run's rate counts from the end of an epoch's first iteration to the end of its last, when the device is idle again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from loop import BATCH, RATE, SEED, Run, decoded, in_turns, job_spec, machine, table, timed
from torch import Tensor, nn

from core.events import Iteration
from core.places import Places
from core.spec import JobSpec
from core.training.job import fit

TARGET = 0.97
"""Of the bare loop's rate, that ours must reach."""


def loop(name: str, images: Tensor, labels: Tensor, epochs: int, *, wait: bool) -> Iterator[int]:
    """Tensors on the device and one fused group; yields the epoch after each iteration. `wait`: read each loss at once."""
    torch.backends.cudnn.benchmark = True  # as a job has it
    torch.manual_seed(SEED)
    model = torchvision.models.get_model(name, num_classes=10).cuda()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    for epoch in range(epochs):
        model.train()
        batches = torch.randperm(len(images), device="cuda").split(BATCH)
        for number, chosen in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            if wait:
                loss.item()
            if number in {0, len(batches) - 1}:  # where the clock is read
                torch.cuda.synchronize()
            yield epoch


def ours(name: str, size: int, epochs: int) -> Iterator[int]:
    """The whole job; yields the epoch with each loss. The last of an epoch comes when the device has done it."""
    spec = job_spec(epochs)
    spec["dataset"] = {"source": "sklearn:digits", "image_size": size}
    spec["model"] = {"name": f"torchvision:{name}"}
    spec["training"] = {"epochs": epochs, "seed": SEED, "precision": "fp32", "channels_last": False}
    with tempfile.TemporaryDirectory() as directory:
        for event in fit(JobSpec.model_validate(spec), Places(), Path(directory), device="cuda"):
            if isinstance(event, Iteration):
                yield event.epoch


def main() -> int:
    """Exit status 1 where the target is missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18", "mobilenet_v3_small"])
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=20, help="per run, of 26 iterations")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("this needs a CUDA device; benchmarks/loop.py is the one for the CPU", file=sys.stderr)
        return 2
    print(*machine(), f"{torch.cuda.get_device_name()}, batch {BATCH}, {given.size} px", sep="\n")
    images, labels = (tensor.cuda() for tensor in decoded(given.size))
    met = True
    for name in given.models:

        def once(name: str = name, *, wait: bool) -> Run:
            return timed(loop(name, images, labels, given.epochs, wait=wait))

        def streamed(name: str = name) -> Run:
            return timed(ours(name, given.size, given.epochs))

        runs = {"ours": streamed, "waiting": lambda: once(wait=True), "bare": lambda: once(wait=False)}
        print(f"\n{name}, {given.repeats} runs of {given.epochs} epochs each\n")
        share = table(in_turns(runs, given.repeats))["ours"]
        print(f"\nours is {share:.3f} of bare; the target is {TARGET}: {'met' if share >= TARGET else 'missed'}")
        met &= share >= TARGET
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
