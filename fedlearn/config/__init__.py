"""Files of fedlearn: their models are declared with :mod:`attestation.config`."""

from __future__ import annotations

from fedlearn.config.fields import NAME, address, name
from fedlearn.config.files import (
    MAX_FILE_BYTES,
    ConfigErrors,
    errors,
    file_bytes,
    read,
    read_document,
    read_file,
    relative,
    write_new,
    write_new_bytes,
)

__all__ = [
    "MAX_FILE_BYTES",
    "NAME",
    "ConfigErrors",
    "address",
    "errors",
    "file_bytes",
    "name",
    "read",
    "read_document",
    "read_file",
    "relative",
    "write_new",
    "write_new_bytes",
]
