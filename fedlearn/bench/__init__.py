"""What confidentiality costs a job: the same job with and without each of its protections.

The page is docs/performance.md.
"""
