"""What works, for the OpenAPI page. The tests send each of them."""

from __future__ import annotations

from typing import Any

SPECS: dict[str, dict[str, Any]] = {
    "small": {
        "summary": "The smallest: scikit-learn's digits on a small ResNet, from scratch",
        "value": {"dataset": {"source": "sklearn:digits", "image_size": 32}, "model": {"name": "torchvision:resnet18"}},
    },
    "groups": {
        "summary": "Parameter groups: a fast head, a frozen stem, the rest at the optimizer's lr; a warmup and a cosine",
        "value": {
            "name": "digits with groups",
            "labels": {"team": "web"},
            "dataset": {"source": "sklearn:digits", "image_size": 32, "validation": 0.2},
            "loader": {"batch_size": 64},
            "model": {"name": "torchvision:resnet18"},
            "loss": {"name": "CrossEntropyLoss", "label_smoothing": 0.1},
            "optimizer": {
                "name": "Adam",
                "lr": 1e-4,
                "groups": [
                    {"name": "head", "params": "fc.*", "lr": 1e-3},
                    {"name": "stem", "params": ["conv1.*", "bn1.*"], "freeze": True},
                ],
            },
            "schedule": {"name": "CosineAnnealingLR", "warmup_epochs": 0.5},
            "training": {"epochs": 3, "seed": 0},
        },
    },
    "transfer": {
        "summary": "Transfer: ImageNet weights on Fashion-MNIST (downloads them where GRAFT_DOWNLOAD allows it)",
        "value": {
            "name": "clothes",
            "dataset": {"source": "torchvision:FashionMNIST", "image_size": 96},
            "loader": {"batch_size": 64},
            "model": {"name": "torchvision:resnet50"},
            "pretrained": {"source": "torchvision:resnet50/IMAGENET1K_V2", "min_loaded": 0.9},
            "optimizer": {"name": "Adam", "lr": 1e-4, "groups": [{"name": "head", "params": "fc.*", "lr": 1e-3}]},
            "training": {"epochs": 5},
        },
    },
}

FORKS: dict[str, dict[str, Any]] = {
    "again": {"summary": "The same once more: to try a failed job again", "value": {}},
    "finer": {
        "summary": "A tenth of the learning rate, for three more epochs",
        "value": {"name": "finer", "optimizer": {"lr": 1e-4}, "training": {"epochs": 3}},
    },
    "scratch": {"summary": "The same spec without pretrained weights", "value": {"pretrained": None}},
}

JOB_PATCHES: dict[str, dict[str, Any]] = {
    "sooner": {"summary": "Before all others in its queue", "value": {"priority": 100}},
    "labels": {"summary": "Another team, and no longer a draft", "value": {"labels": {"team": "search", "draft": None}}},
}

GROUP_PATCHES: dict[str, dict[str, Any]] = {
    "lr": {"summary": "Half the learning rate, from the next step on", "value": {"lr": 5e-4}},
    "thaw": {"summary": "Train a frozen group from step 1000 on", "value": {"freeze": False, "lr": 1e-4, "at_step": 1000}},
}
