"""A whole federation as processes of one machine, for the demo and ``fedlearn job try``.

The page is docs/tutorials/index.md.
"""
