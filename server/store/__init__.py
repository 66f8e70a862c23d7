"""The sealed store of models, and what binds it to the ledger."""
