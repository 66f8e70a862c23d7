"""Strategies of our own whose next model follows from exact means over the updates of a round.

SCAFFOLD, FedNova and FedDyn keep no single update: an update is added and released, as that of
FedAvg. What they need of a site beside its update is a number in its metrics, so that an update
has the names, types and shapes of the model for every strategy.
"""
