"""Reads a sealed model as arrays, or writes it as a safetensors file in plaintext.

For the holders of a key that opens the file: the owner of a job, a client inside its TEE, the
coordinator. Errors are those of :mod:`fedlearn.sealing`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from attestation.errors import UnsealError
from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import FilePart, Part, gathered, slice_of
from fedlearn.sealing import MAX_TENSORS, SealedReader, Tensor, TensorSpec
from fedlearn.update.arrays import DTYPES, Array, dtype_name, layout, safetensors_header

__all__ = [
    "STATE",
    "Source",
    "as_tensors",
    "export",
    "load",
    "load_document",
    "load_state",
    "sources",
]

STATE: Final = "fedlearn.state"
"""The tensor of a checkpoint with everything except the weights; never exported."""


def as_tensors(arrays: Mapping[str, Array]) -> Iterator[Tensor]:
    """Yield arrays as tensors to seal, without copying those that are contiguous.

    :raises UpdateRejected: for an element type that has no name in safetensors.
    """
    for name, array in arrays.items():
        label = dtype_name(array.dtype)
        plain = np.asarray(array, dtype=DTYPES[label], order="C")
        yield Tensor(
            name=name, dtype=label, shape=plain.shape, data=plain.reshape(-1).view(np.uint8).data
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor to seal whose values lie in ``parts``, one after the other."""

    spec: TensorSpec
    parts: tuple[Part, ...]

    def chunks(self, lengths: Iterable[int]) -> Iterator[memoryview]:
        """Yield the values in pieces of these lengths; one is valid until the next is requested.

        What lies in memory is not copied, and what lies in a file is read piece by piece.
        """
        left = deque(
            part if isinstance(part, FilePart) else memoryview(part) for part in self.parts
        )
        at = 0
        buffer = memoryview(b"")
        for length in lengths:
            first = left[0] if left else None
            if isinstance(first, memoryview) and at + length <= len(first):
                yield first[at : at + length]
                at += length
                if at == len(first):
                    left.popleft()
                    at = 0
                continue
            if len(buffer) < length:
                buffer = memoryview(bytearray(length))
            done = 0
            while done < length:
                part, size = left[0], min(length - done, len(left[0]) - at)
                if isinstance(part, FilePart):
                    part.read_into(buffer[done : done + size], at)
                else:
                    buffer[done : done + size] = part[at : at + size]
                done, at = done + size, at + size
                if at == len(part):
                    left.popleft()
                    at = 0
            yield buffer[:length]


def sources(content: Mapping[str, Array] | Part) -> Iterator[Source]:
    """Yield what is to be sealed of arrays, or of a document of them that is not decoded.

    :raises UpdateRejected: for an element type that has no name in safetensors, or something that
        is not a document.
    """
    if isinstance(content, Mapping):
        for tensor in as_tensors(content):
            spec = TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)
            yield Source(spec, (tensor.data,))
        return
    for place in layout(content, max_bytes=len(content), max_tensors=MAX_TENSORS):
        spec = TensorSpec(name=place.name, dtype=dtype_name(place.dtype), shape=place.shape)
        yield Source(spec, (slice_of(content, place.start, place.end - place.start),))


def load_document(reader: SealedReader) -> Part:
    """Return the weights as one document, decrypted piece by piece into a sealed file in memory.

    :raises UnsealError: naming the tensor that was altered.
    """
    specs = {
        spec.name: (spec.dtype, spec.shape) for spec in reader.header.tensors if spec.name != STATE
    }
    header, order = safetensors_header(specs)
    pieces = (bytes(piece) for name in order for piece in reader.chunks(name))
    return gathered(itertools.chain([header], pieces))


def load_state(reader: SealedReader) -> Part:
    """Return the tensor :data:`STATE`, as :func:`load_document`; empty where there is none."""
    if STATE not in reader.header.spans:
        return b""
    return gathered(map(bytes, reader.chunks(STATE)))


def load(reader: SealedReader) -> dict[str, Array]:
    """Return the weights as arrays, decrypted straight into their memory.

    :raises UnsealError: naming the tensor that was altered, or whose element type numpy does not
        have.
    """
    arrays: dict[str, Array] = {}
    for spec in reader.header.tensors:
        if spec.name == STATE:
            continue
        dtype = DTYPES.get(spec.dtype)
        if dtype is None:
            raise UnsealError(
                f"tensor {spec.name!r}: numpy has no type {spec.dtype}",
                hint="export the model and read it with another library",
            )
        array = np.empty(spec.shape, dtype)
        reader.tensor(spec.name, into=array.reshape(-1).view(np.uint8).data)
        arrays[spec.name] = array
    return arrays


def export(
    reader: SealedReader, out: Path, *, replace: bool = False, names: Collection[str] = ()
) -> int:
    """Write the weights to ``out`` as safetensors, with mode 0600, and return its bytes.

    This is plaintext. The file is written atomically; extra memory is one chunk. Its
    SHA-256 is the digest of the same weights as an :class:`fedlearn.update.arrays.Update`.

    :param replace: replace an existing file.
    :param names: the tensors to write, by default all; no chunk of another one is read.
    :raises StoreError: when ``out`` exists and is not to be replaced, or there is no tensor of a
        name.
    :raises UnsealError: naming the tensor that was altered; no file is left.
    :raises OSError: when it cannot be written; no file is left.
    """
    if not replace and os.path.lexists(out):
        raise _exists(out)
    specs = {
        spec.name: (spec.dtype, spec.shape) for spec in reader.header.tensors if spec.name != STATE
    }
    if missing := [name for name in names if name not in specs]:
        raise StoreError(
            f"{reader.path.name} has no tensor {missing[0]!r}",
            hint="`fedlearn model open` lists its tensors",
        )
    if names:
        specs = {name: spec for name, spec in specs.items() if name in names}
    header, order = safetensors_header(specs)
    directory = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd, temporary = _unnamed(directory)
        try:
            size = _write(fd, header)
            for name in order:
                for chunk in reader.chunks(name):
                    size += _write(fd, chunk)
            os.fsync(fd)
            if temporary is None:
                temporary = _name(fd, directory)
            _place(temporary, out, directory, replace=replace)
            os.fsync(directory)
        finally:
            os.close(fd)
            if temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
    finally:
        os.close(directory)
    return size


def _unnamed(directory: int) -> tuple[int, str | None]:
    """Open an unnamed file, or a hidden one where the file system has no unnamed files."""
    with contextlib.suppress(OSError):
        return os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o600, dir_fd=directory), None
    name = f".fedlearn-export.{secrets.token_hex(8)}.tmp"
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory), name


def _name(fd: int, directory: int) -> str:
    """Give an unnamed file a temporary name (linkat(2) of its entry in /proc)."""
    name = f".fedlearn-export.{secrets.token_hex(8)}.tmp"
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
    return name


def _place(temporary: str, out: Path, directory: int, *, replace: bool) -> None:
    if replace:
        os.replace(temporary, out.name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    try:
        os.link(temporary, out.name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        raise _exists(out) from None


def _write(fd: int, data: bytes | memoryview) -> int:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]
    return len(data)


def _exists(out: Path) -> StoreError:
    return StoreError(f"{out} exists already", hint="choose another name, or --replace it")
