"""A plain PyTorch transfer-learning library: it knows no HTTP, no SQL and no queue.

The five parts of a training script, each as one module: a dataset and its batches by hyper-parameters (`datasets`, `batches`),
`get_model` with pretrained weights copied where they match (`models`, `weights`), a loss and an optimizer by name from parameter
groups (`losses`, `groups`), and `train_fn`, one epoch as a function (`loop`).
"""
