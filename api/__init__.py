"""The HTTP API: checks specs, answers from the store, streams the log. Imports no torch."""
