"""The worker of a GPU host: claims jobs, owns their leases, supervises their trainer processes. Imports no torch itself."""
