"""The coordinator: admission, sealed store, ledger and rounds."""
