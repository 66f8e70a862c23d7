"""Names of models, jobs and secrets, which are also names of files."""

from __future__ import annotations

import re
from typing import Final

from fedlearn.errors import StoreError

__all__ = ["checked_name"]

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,70}[a-z0-9])?")


def checked_name(name: str) -> str:
    """Return ``name`` when it can name a model, a job, a secret or a blob.

    1 to 72 characters: lower-case letters, digits, and inside also ``.``, ``_``, ``-``; no
    two dots in a row. Such a name is also a safe file name.

    :raises StoreError: otherwise.
    """
    if _NAME.fullmatch(name) is None or ".." in name:
        raise StoreError(
            f"{name!r} is not a name",
            hint="use 1 to 72 lower-case letters, digits, '-', '_' or '.'",
        )
    return name
