"""Collateral in a folder: everything that verification needs without a network.

A folder made by ``fedlearn collateral fetch`` has a ``bundle.json``::

    {"version": 1, "items": [{"path", "kind", "name", "sha256"}, ...],
     "sources": {name: {part: address}}}

    kind  intel-collateral   JSON of a QuoteCollateralV3: PCK chain, CRLs, TCB info, QE identity
          certificates       X.509 certificates, PEM or DER: ASK, ASVK, ARK, VCEK, VLEK, EK roots
          crl                an X.509 revocation list, PEM or DER
          nvidia-rim         a reference manifest of NVIDIA, XML; needs the extra ``nvidia``
          ocsp               an OCSP answer, DER

``sources`` are the addresses to fetch from again. The validity of an item is read from the item
itself. Of a folder without a ``bundle.json``, every file of one of these kinds is used, and the
answers of Intel's service are combined
(:mod:`attestation.endorsements.collateral_answers`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Final

from attestation.encodings import json_object
from attestation.endorsements.collateral_answers import assemble_answers
from attestation.endorsements.collateral_windows import WINDOWS
from attestation.endorsements.nvidia_rim import is_rim
from attestation.endorsements.ocsp import is_ocsp
from attestation.endorsements.offline import (
    MAX_COLLATERAL_BYTES,
    MAX_ENDORSEMENT_BYTES,
    Input,
    unread_pieces,
)
from attestation.errors import EndorsementError, EvidenceError, FreshnessError

__all__ = [
    "BUNDLE_NAME",
    "KINDS",
    "WARN_BEFORE",
    "Folder",
    "Item",
    "bundle_json",
    "describe",
    "load_folder",
    "read_bundle",
    "read_files",
    "read_sources",
]

BUNDLE_NAME: Final = "bundle.json"
KINDS: Final = tuple(WINDOWS)
WARN_BEFORE: Final = timedelta(days=7)
"""How long before the expiry of an item a warning is given."""

_DOCUMENTS: Final = ("intel-collateral", "nvidia-rim", "ocsp")
"""What goes to :attr:`~.trust.TrustAnchors.collateral`; the others are endorsements."""
_MAX_BUNDLE_BYTES: Final = 1024 * 1024
_MAX_ITEMS: Final = 1024
_MAX_TEXT: Final = 512
_NAME: Final = re.compile(r"[a-z0-9][A-Za-z0-9-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FETCH: Final = "fedlearn collateral fetch --directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of a bundle. Times are those that its content states (aware, UTC)."""

    path: str
    kind: str
    name: str
    sha256: bytes
    data: bytes
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The content of a folder, as trust anchors take it, and warnings of what expires soon."""

    collateral: tuple[bytes, ...]
    endorsements: tuple[Input, ...]
    warnings: tuple[str, ...]


def load_folder(path: Path, *, now: datetime, warn_before: timedelta = WARN_BEFORE) -> Folder:
    """Load a folder of collateral.

    :raises EndorsementError: when an item of a bundle is missing or altered.
    :raises FreshnessError: when one expired or is not yet valid at ``now``; both name the
        item, the date and the command that fetches it again.
    :raises EvidenceError: when ``bundle.json`` is malformed.
    """
    if not (path / BUNDLE_NAME).is_file():
        return _loose(path, now)
    items = read_bundle(path)
    warnings = [*_check(path, items, now, warn_before), *_unread(path, items)]
    return Folder(
        collateral=tuple(item.data for item in items if item.kind in _DOCUMENTS),
        endorsements=tuple(
            Input(name=str(path / item.path), data=item.data)
            for item in items
            if item.kind not in _DOCUMENTS
        ),
        warnings=tuple(warnings),
    )


def read_files(paths: Iterable[Path]) -> Iterator[Input]:
    """Read files, and the files in folders, of any content.

    Folders inside of folders, hidden files, and files in a folder that are larger than
    :data:`~attestation.endorsements.offline.MAX_ENDORSEMENT_BYTES` are ignored.

    :raises EndorsementError: when a file cannot be read.
    :raises EvidenceError: when a file that was named is too large, or a folder has too many.
    """
    for path in paths:
        if not path.is_dir():
            yield Input(name=str(path), data=_bounded(path, MAX_ENDORSEMENT_BYTES, path.parent))
            continue
        files = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        if len(files) > _MAX_ITEMS:
            raise EvidenceError(
                f"{len(files)} files, at most {_MAX_ITEMS} are read", field=str(path)
            )
        for file in files:
            if file.is_file() and file.stat().st_size <= MAX_ENDORSEMENT_BYTES:
                yield Input(name=str(file), data=_bounded(file, MAX_ENDORSEMENT_BYTES, path))


def read_bundle(path: Path, *, without: Collection[str] = ()) -> tuple[Item, ...]:
    """Read every item of a bundle and compare it with its digest; validity is not checked.

    Items whose path is in ``without`` are left out and not read.

    :raises EndorsementError: naming the item that is missing or altered.
    :raises EvidenceError: when ``bundle.json`` is missing or malformed.
    """
    where = f"{path / BUNDLE_NAME}"
    listed = _document(path)["items"]
    items = []
    for number, entry in enumerate(listed):
        field = f"{where}: items[{number}]"
        if not isinstance(entry, dict) or entry.keys() != {"path", "kind", "name", "sha256"}:
            raise EvidenceError("must have exactly kind, name, path, sha256", field=field)
        values = {key: _text(entry[key], f"{field}.{key}") for key in entry}
        inside = PurePosixPath(values["path"])
        if inside.is_absolute() or ".." in inside.parts or not inside.parts:
            raise EvidenceError("must stay inside of the folder", field=f"{field}.path")
        if values["kind"] not in KINDS:
            raise EvidenceError(f"must be one of {', '.join(KINDS)}", field=f"{field}.kind")
        if not _DIGEST.fullmatch(values["sha256"]):
            raise EvidenceError("must be a SHA-256 in hex", field=f"{field}.sha256")
        if values["path"] in without:
            continue
        data = _bounded(path / inside, MAX_COLLATERAL_BYTES, path)
        if hashlib.sha256(data).hexdigest() != values["sha256"]:
            raise EndorsementError(
                f"{path / inside} ({values['name']}) is not the file that was fetched",
                step="collateral",
                hint=f"{_FETCH} {path}",
            )
        items.append(describe(data, path=values["path"], name=values["name"]))
        if items[-1].kind != values["kind"]:
            raise EvidenceError(f"is {items[-1].kind}", field=f"{field}.kind")
    return tuple(items)


def read_sources(path: Path) -> dict[str, dict[str, str]]:
    """Return the addresses that the items of a bundle came from.

    :raises EvidenceError: when ``bundle.json`` is missing or malformed.
    """
    field = f"{path / BUNDLE_NAME}: sources"
    sources: dict[str, dict[str, str]] = {}
    for name, parts in _document(path)["sources"].items():
        if not isinstance(parts, dict) or not _NAME.fullmatch(name):
            raise EvidenceError("must be names of objects", field=field)
        sources[name] = {
            _text(part, field): _text(address, f"{field}.{name}") for part, address in parts.items()
        }
    return sources


def bundle_json(items: Iterable[Item], sources: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the ``bundle.json`` that lists ``items`` and where they came from."""
    listed = [
        {"path": item.path, "kind": item.kind, "name": item.name, "sha256": item.sha256.hex()}
        for item in sorted(items, key=lambda item: item.path)
    ]
    document = {
        "version": 1,
        "items": listed,
        "sources": {name: dict(parts) for name, parts in sources.items()},
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def describe(data: bytes, *, path: str, name: str = "") -> Item:
    """Return the kind, the name and the validity of one file of collateral.

    :raises EvidenceError: when it is none of :data:`KINDS`, or collateral that is malformed.
    """
    for kind, look in WINDOWS.items():
        try:
            found = look(data)
        except EvidenceError as error:
            raise EvidenceError(str(error), field=path, hint=error.hint) from error
        if found is not None:
            title, not_before, not_after = found
            return Item(
                path=path,
                kind=kind,
                name=name or title,
                sha256=hashlib.sha256(data).digest(),
                data=data,
                not_before=not_before,
                not_after=not_after,
            )
    raise EvidenceError(
        "is no Intel collateral, certificates, revocation list, RIM or OCSP answer", field=path
    )


def _check(
    path: Path, items: Iterable[Item], now: datetime, warn_before: timedelta
) -> Iterable[str]:
    for item in items:
        mend = f"{_FETCH} {path}"
        if now >= item.not_after:
            raise FreshnessError(
                f"{item.name} ({item.path}) expired at {item.not_after.isoformat()}",
                step="collateral",
                hint=mend,
            )
        if now < item.not_before:
            raise FreshnessError(
                f"{item.name} ({item.path}) counts only from {item.not_before.isoformat()}",
                step="collateral",
                hint="check the clock, or appraise at another time with --at",
            )
        # NVIDIA's OCSP answers are valid for a day; the warning starts half a day before the end.
        half = (item.not_after - item.not_before) / 2
        if now >= item.not_after - (min(warn_before, half) if item.kind == "ocsp" else warn_before):
            yield f"{item.name} ({item.path}) expires at {item.not_after.isoformat()}; {mend}"


def _unread(path: Path, items: Iterable[Item]) -> Iterator[str]:
    for item in items:
        if item.kind == "certificates":
            for problem in unread_pieces(item.data):
                yield f"{path / item.path}: {problem}"


def _loose(path: Path, now: datetime) -> Folder:
    files = tuple(read_files([path]))
    answers = assemble_answers(files, now=now)
    collateral = [item.data for item in answers.documents]
    endorsements: list[Input] = []
    warnings = list(answers.missing)
    for file in files:
        if file.name in answers.used:
            continue
        if b"-----BEGIN " in file.data:
            warnings += [f"{file.name}: {problem}" for problem in unread_pieces(file.data)]
        try:
            item = describe(file.data, path=file.name)
        except EvidenceError as error:
            if b'"tcb_info"' in file.data or is_rim(file.data) or is_ocsp(file.data):
                warnings.append(str(error))
            continue
        if item.kind in _DOCUMENTS:
            collateral.append(file.data)
        else:
            endorsements.append(file)
    if not collateral and not endorsements:
        raise EndorsementError(
            f"{path} holds no collateral", step="collateral", hint=f"{_FETCH} {path}"
        )
    return Folder(
        collateral=tuple(collateral), endorsements=tuple(endorsements), warnings=tuple(warnings)
    )


def _document(path: Path) -> dict[str, Any]:
    where = str(path / BUNDLE_NAME)
    document = json_object(_bounded(path / BUNDLE_NAME, _MAX_BUNDLE_BYTES, path), where)
    if document.keys() != {"version", "items", "sources"}:
        raise EvidenceError("must have exactly items, sources and version", field=where)
    if document["version"] != 1:
        raise EvidenceError("only version 1 is known", field=f"{where}: version")
    for key, kind in (("items", list), ("sources", dict)):
        if not isinstance(document[key], kind) or len(document[key]) > _MAX_ITEMS:
            raise EvidenceError(
                f"must be a {kind.__name__} of at most {_MAX_ITEMS}", field=f"{where}: {key}"
            )
    return document


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise EvidenceError(f"must be text of 1 to {_MAX_TEXT} characters", field=where)
    return value


def _bounded(file: Path, limit: int, folder: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise EndorsementError(
            f"{file} cannot be read: {reason}", step="collateral", hint=f"{_FETCH} {folder}"
        ) from None
    if len(data) > limit:
        raise EvidenceError(f"larger than {limit} bytes, which are read", field=str(file))
    return data
