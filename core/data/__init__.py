"""Data: a dataset by its source, its splits and targets; decoded, cached, and given out in batches."""
