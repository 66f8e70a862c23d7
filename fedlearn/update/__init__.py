"""Named arrays: encoded, committed to, sealed, and converted from and to torch."""
