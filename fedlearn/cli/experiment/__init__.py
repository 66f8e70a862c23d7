"""``fedlearn experiment``: many runs of a job over a grid or a search, and their report.

The page is docs/how-to/run-experiments.md.
"""
