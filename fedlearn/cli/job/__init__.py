"""``fedlearn job``: write, check, try, submit and watch jobs.

The page is docs/tutorials/launch-a-job.md.
"""
