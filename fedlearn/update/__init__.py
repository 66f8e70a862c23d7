"""Named arrays: encoded, committed to, sealed, and converted from and to torch.

The page is docs/reference/api/update.md.
"""
