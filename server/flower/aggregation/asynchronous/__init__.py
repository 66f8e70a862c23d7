"""Asynchronous strategies: versions of a model in place of rounds."""
