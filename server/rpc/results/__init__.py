"""What operators and owners get of finished work: sealed models and the ledger."""
