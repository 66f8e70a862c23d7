"""Federated confidential learning: train one model across attested sites.

::

    import fedlearn

    job = fedlearn.Job.load("my-job/job.toml")
    run = fedlearn.connect().submit(job)
    print(run.follow().metrics)

The names are imported when they are first used.

The pages are docs/index.md, docs/start/concepts.md, docs/reference/index.md,
docs/contributing/index.md, docs/adr/README.md, docs/adr/0005-contracts.md and
docs/adr/0021-layers.md.
"""

# `__init__.pyi` states the same names for type checkers and editors: an import here, even one for
# type checkers only, would make a circle of imports.

__all__ = ["Connection", "Job", "Result", "Run", "__version__", "connect"]

__version__ = "0.1.0"
"""The version of the distribution; pyproject.toml takes it from here."""

_HOMES = {
    "Connection": "fedlearn.api.connection",
    "Job": "fedlearn.api.job",
    "Result": "fedlearn.api.result",
    "Run": "fedlearn.api.run",
    "connect": "fedlearn.api.connection",
}


def __getattr__(name: str) -> object:
    """Import and return a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that were not used yet."""
    return sorted({*globals(), *__all__})
