"""The `graft` command and a small Python client. They speak HTTP."""
