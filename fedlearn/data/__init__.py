"""Data for research: sources that need no download, and their division among sites.

:func:`materialise` writes what the table ``[data]`` of ``simulation.toml`` states: a folder for
each site, with the files that a site has in the field. :mod:`fedlearn.data.partition` has the
partitions as functions, :mod:`fedlearn.data.sources` reads files and what Python packages install.

Nothing here has to do with a coordinator or a TEE: in the field each site brings its own data.

>>> from fedlearn.data import load, partition
>>> examples = load("sklearn:digits")
>>> parts = partition.dirichlet(examples.y, 10, alpha=0.5, seed=1)
>>> sum(len(part) for part in parts) == len(examples.y)
True

The pages are docs/how-to/split-data.md and docs/adr/0045-data.md.
"""

from __future__ import annotations

from fedlearn.data.examples import Examples
from fedlearn.data.materialise import SERVER_TEST, materialise, write_new
from fedlearn.data.setup import DataSetup
from fedlearn.data.sources import from_dataset, load

__all__ = [
    "SERVER_TEST",
    "DataSetup",
    "Examples",
    "from_dataset",
    "load",
    "materialise",
    "write_new",
]
