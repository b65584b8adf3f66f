"""Transfer: pretrained weights found, read, matched with a model name by name, and copied all or nothing."""
