"""Pretrained weights that lie at a site, checked by the digest that the job names.

In LoRA fine-tuning (Hu et al. 2022, arXiv:2106.09685) the base weights are frozen and only the
adapter is trained and sent. An app has no network, so the base is a file beside the data of each
site. Sites with different bases would train adapters that do not fit together, and the disk of a
site is outside of the TEE: the job names the SHA-256 of the file in ``[config]``, which evidence is
bound to.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import torch

from fedlearn.errors import JobError
from fedlearn.extras import load

__all__ = ["base_weights"]

_DIGEST: Final = re.compile(r"(sha256:)?[0-9a-f]{64}")


def base_weights(path: str | Path, digest: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file with this digest.

    The file is read once, and the tensors are made of the bytes whose digest was computed: what
    changes on the disk afterwards has no effect.

    >>> import tempfile
    >>> from safetensors.torch import save
    >>> data = save({"w": torch.ones(2)})
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(data), file.flush()
    ...     base_weights(file.name, hashlib.sha256(data).hexdigest())["w"].tolist()
    [1.0, 1.0]

    :param digest: SHA-256 in lower-case hexadecimal, with or without ``sha256:`` before it; what
        ``sha256sum`` prints.
    :raises JobError: when the file cannot be read, has another digest, or is no safetensors file.
    :raises ConfigError: where the extra ``torch``, which brings safetensors, is not installed.
    """
    if not _DIGEST.fullmatch(digest):
        raise JobError(
            f"{digest[:80]!r} is not a SHA-256 of 64 hexadecimal digits",
            hint="put what `sha256sum` prints for the base weights into [config] of the job",
        )
    safetensors = load("safetensors", needed_for="base weights")
    from_bytes = load("safetensors.torch", needed_for="base weights").load
    expected = digest.removeprefix("sha256:")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise JobError(
            f"the base weights {path} cannot be read: {error.strerror}",
            hint="each site puts the file beside its data",
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise JobError(
            f"the base weights {path} have the SHA-256 {found}; the job names {expected}",
            hint="the sites of a job need the same base; get the file that the job was written for",
        )
    try:
        tensors: dict[str, torch.Tensor] = from_bytes(data)
    except safetensors.SafetensorError as error:
        raise JobError(f"the base weights {path} are not a safetensors file: {error}") from None
    return tensors
