"""Augmentation: operations in batch, with draws of its own for each image."""
