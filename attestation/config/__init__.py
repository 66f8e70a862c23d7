"""TOML that is read strictly, with line numbers in every message."""
