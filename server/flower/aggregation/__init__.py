"""The aggregator's process: rounds, strategies, and the updates in the clear."""
