"""Training: an epoch, a job, and what is kept of it."""
