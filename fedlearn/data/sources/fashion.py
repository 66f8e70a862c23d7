"""Fashion-MNIST from Debian's package ``dataset-fashion-mnist``: 70,000 images in ten classes.

Source of the format: Y. LeCun, "The MNIST database", section "file formats": a magic
number whose last byte is the number of dimensions, the dimensions as u32 big-endian, then
the bytes.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedlearn.data.examples import Examples
from fedlearn.errors import ConfigError

__all__ = ["FOLDER", "NAME", "load", "paths", "read_idx", "read_training"]

NAME: Final = "fashion-mnist"
FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")

CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_MAX_BYTES: Final = 64 * 1024 * 1024
_UBYTE: Final = 0x08
_X: Final = "images-idx3"
_Y: Final = "labels-idx1"


def load() -> Examples:
    """Return the 60,000 training images (28 by 28 pixels, uint8), with the 10,000 of the test set.

    :raises ConfigError: when Debian's package is not installed.
    """
    x, y = read_training()
    test_x, test_y = _read("t10k")
    return Examples(
        name=NAME,
        x=x,
        y=y.astype(np.int64),
        classes=CLASSES,
        test=(test_x, test_y.astype(np.int64)),
    )


def read_training() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the training images and their labels, from 0 to 9.

    :raises ConfigError: when Debian's package is not installed.
    """
    return _read("train")


def paths() -> list[Path]:
    """Return the four files."""
    return [FOLDER / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in (_X, _Y)]


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes.

    :raises ConfigError: when it is missing or is not such a file.
    """
    if not path.is_file():
        raise ConfigError(
            "Fashion-MNIST is not installed",
            where=str(path),
            hint="apt-get install dataset-fashion-mnist, or use scikit-learn's digits",
        )
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"not a whole gzip file: {error}", where=str(path)) from None
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


def _read(part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return (
        read_idx(FOLDER / f"{part}-{_X}-ubyte.gz", dimensions=3),
        read_idx(FOLDER / f"{part}-{_Y}-ubyte.gz", dimensions=1),
    )
