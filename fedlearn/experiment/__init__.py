"""Experiments: many runs of a job over a grid of keys and seeds, and their report.

The page is docs/experiments.md.
"""
