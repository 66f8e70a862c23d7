"""``fedlearn demo``: a federation on this machine, from enrollment to the sealed model.

The page is docs/start/quickstart.md.
"""
