"""``fedlearn privacy``: what an epsilon costs, before a job is written.

The page is docs/how-to/choose-privacy.md.
"""
