"""Fashion-MNIST from Debian's package ``dataset-fashion-mnist``.

Source of the format: Y. LeCun, "The MNIST database", section "file formats": a magic
number whose last byte is the number of dimensions, the dimensions as u32 big-endian, then
the bytes.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedlearn.demo import images
from fedlearn.demo.data import DemoData
from fedlearn.errors import ConfigError

__all__ = ["FOLDER", "PER_SITE", "load", "read_idx"]

FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
PER_SITE: Final = 600
"""Images of a site on average; with all 70,000 the demo would be slow."""

_MAX_BYTES: Final = 64 * 1024 * 1024
_UBYTE: Final = 0x08


def load(*, sites: int, seed: int, per_site: int = PER_SITE) -> DemoData:
    """Return ``per_site`` images for each site on average, drawn without repetition.

    :raises ConfigError: when Debian's package is not installed.
    """
    pixels = read_idx(FOLDER / "train-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(FOLDER / "train-labels-idx1-ubyte.gz", dimensions=1)
    rng = np.random.default_rng([seed, 3])
    chosen = np.sort(rng.choice(len(labels), size=sites * per_site, replace=False))
    return DemoData(
        name="fashion",
        title="Fashion-MNIST",
        task="recognise ten kinds of clothing",
        source=f"Debian's dataset-fashion-mnist: {len(chosen):,} of its 60,000 training images",
        licence="MIT (Zalando Research); installed by apt",
        app="images",
        metric="accuracy",
        unit="images",
        partition=f"labels skewed by a Dirichlet draw, concentration {images.ALPHA}",
        seed=seed,
        sites=images.deal(pixels[chosen], labels[chosen], sites=sites, seed=seed),
        settings={"image-size": 28, "local-epochs": 1},
    )


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes.

    :raises ConfigError: when it is missing or is not such a file.
    """
    if not path.is_file():
        raise ConfigError(
            "the data set 'fashion' is not installed",
            where=str(path),
            hint="apt-get install dataset-fashion-mnist, or use --data digits",
        )
    with gzip.open(path) as file:
        content = file.read(_MAX_BYTES + 1)
    head = 4 + 4 * dimensions
    if len(content) > _MAX_BYTES or len(content) < head:
        raise ConfigError("not an IDX file of the expected size", where=str(path))
    zero, kind, count = struct.unpack(">HBB", content[:4])
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    if zero != 0 or kind != _UBYTE or count != dimensions:
        raise ConfigError(f"not an IDX file of {dimensions} dimensions", where=str(path))
    if int(np.prod(shape, dtype=np.int64)) != len(content) - head:
        raise ConfigError("the IDX file is truncated", where=str(path))
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)
