"""Losses by name, in the form that the targets of a dataset need."""
