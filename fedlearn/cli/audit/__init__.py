"""``fedlearn audit``: attacks on a job, run in the simulator.

The page is docs/how-to/audit.md.
"""
