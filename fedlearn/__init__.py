"""Federated confidential learning: train one model across attested sites.

The pages are docs/index.md, docs/start/concepts.md, docs/reference/index.md,
docs/contributing/index.md, docs/adr/README.md, docs/adr/0005-contracts.md and
docs/adr/0021-layers.md.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
"""The version of the distribution; pyproject.toml takes it from here."""
