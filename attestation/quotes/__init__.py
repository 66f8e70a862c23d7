"""Strict parsers of the binary formats of evidence. They verify nothing."""
