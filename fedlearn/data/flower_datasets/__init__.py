"""Flower's data sets from local files: a drop-in for what its examples use of ``flwr_datasets``.

An app that begins with ``from flwr_datasets import FederatedDataset`` runs unchanged and without a
network after :func:`provide` was called in its process::

    datasets/
        uoft-cs/cifar10/          the files of that data set, as on the Hugging Face Hub:
            train.parquet         train and test as .parquet, .csv, .json, .arrow, or folders
            test.parquet          of images

Names in :data:`~fedlearn.data.flower_datasets.local.BUNDLED` need no files. What the methods
return are objects of Hugging Face's ``datasets`` (the extra ``data``), as those of the original.
Partitions are drawn by :mod:`fedlearn.data.partition`; they have the properties of the original's,
and not the same rows.

Source of the interface: the documentation of Flower Datasets 0.6.

The pages are docs/how-to/split-data.md and docs/adr/0045-data.md.
"""

from __future__ import annotations

from fedlearn.data.flower_datasets import partitioner
from fedlearn.data.flower_datasets.federated_dataset import FederatedDataset
from fedlearn.data.flower_datasets.provide import provide, provide_as_asked

__all__ = ["FederatedDataset", "partitioner", "provide", "provide_as_asked"]
