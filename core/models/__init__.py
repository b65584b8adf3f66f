"""Models: built for the dataset, and what is known of their modules."""
