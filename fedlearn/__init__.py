"""Federated confidential learning: train one model across attested sites."""
