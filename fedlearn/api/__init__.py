"""The public Python API; the command line is built on it.

The page is docs/how-to/use-from-python.md.
"""
