"""``fedlearn bench``: what confidentiality costs a job on this machine.

The pages are docs/performance.md and docs/how-to/measure-the-cost-of-confidentiality.md.
"""
