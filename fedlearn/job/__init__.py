"""A job: its specification, its assignments to sites, its events and its seeds.

The page is docs/reference/api/job.md.
"""
