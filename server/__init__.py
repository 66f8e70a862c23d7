"""The coordinator: admission, sealed store, ledger and rounds.

The page is docs/explanation/index.md.
"""
