"""Warm child processes: limited, with a clean environment, spoken to in JSON over a pipe."""
