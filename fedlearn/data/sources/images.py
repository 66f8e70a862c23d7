"""A folder of images: one folder for each class, or ``train`` and ``test`` with these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn import extras
from fedlearn.data.examples import MAX_BYTES, Examples
from fedlearn.errors import ConfigError

__all__ = ["SUFFIXES", "paths", "read_folder"]

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_MAX_IMAGES: Final = 5_000_000


def read_folder(folder: Path) -> Examples:
    """Return the images of a folder as uint8, with the names of their folders as classes.

    All images have the size and the number of channels of the first; nothing is scaled.

    :raises ConfigError: naming the file that is no image or differs from the first, or when there
        are none.
    """
    train = folder / "train"
    if not train.is_dir():
        x, y, classes = _read(folder, None)
        return Examples(name=str(folder), x=x, y=y, classes=classes)
    x, y, classes = _read(train, None)
    test = None
    if (folder / "test").is_dir():
        test_x, test_y, _ = _read(folder / "test", classes)
        if test_x.shape[1:] != x.shape[1:]:
            raise ConfigError(
                f"images of the shape {test_x.shape[1:]}; those in 'train' have {x.shape[1:]}",
                where=str(folder / "test"),
            )
        test = (test_x, test_y)
    return Examples(name=str(folder), x=x, y=y, classes=classes, test=test)


def paths(folder: Path) -> list[Path]:
    """Return all images below a folder, by name.

    :raises ConfigError: for more than 5 million.
    """
    found = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES:
            found.append(path)
            if len(found) > _MAX_IMAGES:
                raise ConfigError(f"more than {_MAX_IMAGES:,} images", where=str(folder))
    return sorted(found)


def _read(
    folder: Path, classes: tuple[str, ...] | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    found = [path for path in paths(folder) if len(path.relative_to(folder).parts) > 1]
    if not found:
        raise ConfigError(
            "has no images in folders",
            where=str(folder),
            hint=f"put images ({', '.join(SUFFIXES)}) into one folder for each class",
        )
    names = [path.relative_to(folder).parts[0] for path in found]
    known = classes or tuple(sorted(set(names)))
    number = {name: index for index, name in enumerate(known)}
    first = _pixels(found[0])
    if first.nbytes * len(found) > MAX_BYTES:
        raise ConfigError(
            f"{len(found):,} images of {first.nbytes:,} bytes; at most {MAX_BYTES:,} bytes are "
            "read",
            where=str(folder),
        )
    x = np.empty((len(found), *first.shape), dtype=np.uint8)
    y = np.empty(len(found), dtype=np.int64)
    for index, (path, name) in enumerate(zip(found, names, strict=True)):
        pixels = _pixels(path)
        if pixels.shape != first.shape:
            raise ConfigError(
                f"has the shape {pixels.shape}; that of {found[0].name} is {first.shape}",
                where=str(path),
                hint="scale all images to one size and one number of channels",
            )
        if name not in number:
            raise ConfigError(f"class {name!r} has no training images", where=str(path))
        x[index], y[index] = pixels, number[name]
    return x, y, known


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    pillow: Any = extras.load("PIL.Image", needed_for="a folder of images")
    try:
        with pillow.open(path) as image:
            mode = "L" if image.mode in ("1", "L") else "RGB"
            return np.asarray(image.convert(mode), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise ConfigError(f"is no image that can be read: {error}", where=str(path)) from None
