"""Federated confidential learning: train one model across attested sites."""

__all__ = ["__version__"]

__version__ = "0.1.0"
"""The version of the distribution; pyproject.toml takes it from here."""
