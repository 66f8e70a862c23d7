"""The results of a job, from its events: rounds, sites, refusals, privacy, times.

:mod:`~fedlearn.results.history` reads events; tables, pages and plots are made of what it returns.
This package imports nothing of the coordinator, of a site, of the public API and of the command
line.

The page is docs/reference/api/results.md.
"""
