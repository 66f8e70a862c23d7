"""A sealed log opens with the owner's key and under its own name, and in no other way."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from fedlearn.sealing import hpke_seal
from fedlearn.sealing.app_log import (
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_SEALED_BYTES,
    AppLogLine,
    AppLogName,
    OpenedAppLog,
    open_app_log,
    seal_app_log,
)

OWNER = X25519PrivateKey.generate()
PUBLIC = OWNER.public_key().public_bytes_raw()
NAME = AppLogName(
    job="heart",
    digest=bytes(32),
    site="north",
    client="c1",
    stream=bytes(16),
    round=3,
    sequence=2,
)
LOG = OpenedAppLog(
    lines=(
        AppLogLine(level="output", text="loss 0.3\x1b[2J é \\xff"),
        AppLogLine(level="error", text="KeyError: 'x'", file="app/client_app.py", line=31),
    ),
    left_out=7,
)


def test_the_owner_opens_what_was_sealed() -> None:
    sealed = seal_app_log(LOG, NAME, PUBLIC)
    assert open_app_log(sealed, NAME, OWNER) == LOG
    assert b"loss" not in sealed
    assert seal_app_log(LOG, NAME, PUBLIC) != sealed


@pytest.mark.parametrize(
    "other",
    [
        {"job": "lung"},
        {"digest": b"\1" * 32},
        {"site": "south"},
        {"client": "c2"},
        {"stream": b"\1" * 16},
        {"round": 4},
        {"sequence": 3},
        {"site": "northc", "client": "1"},
    ],
    ids=lambda other: ",".join(other),
)
def test_a_log_opens_under_its_own_name_only(other: dict[str, Any]) -> None:
    sealed = seal_app_log(LOG, NAME, PUBLIC)
    with pytest.raises(UnsealError):
        open_app_log(sealed, dataclasses.replace(NAME, **other), OWNER)


def test_another_key_or_an_altered_byte_does_not_open() -> None:
    sealed = seal_app_log(LOG, NAME, PUBLIC)
    with pytest.raises(UnsealError):
        open_app_log(sealed, NAME, X25519PrivateKey.generate())
    for place in (0, 40, len(sealed) - 1):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(UnsealError):
            open_app_log(bytes(altered), NAME, OWNER)
    for cut in (b"", sealed[:31], sealed[:-1]):
        with pytest.raises(UnsealError):
            open_app_log(cut, NAME, OWNER)


def test_more_than_the_bounds_is_neither_sealed_nor_opened() -> None:
    with pytest.raises(ValueError, match="at most 2000 lines"):
        seal_app_log(OpenedAppLog(lines=LOG.lines[:1] * (MAX_LINES + 1)), NAME, PUBLIC)
    with pytest.raises(ValueError, match="more than 4096 bytes"):
        AppLogLine(level="output", text="x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(ValueError, match="none of the levels"):
        AppLogLine(level="loud", text="x")
    with pytest.raises(UnsealError, match="at most"):
        open_app_log(bytes(MAX_SEALED_BYTES + 1), NAME, OWNER)
    # The largest log that the client makes: every byte is escaped in JSON.
    worst = AppLogLine(level="output", text="\0" * (MAX_LINE_BYTES // 32))
    full = OpenedAppLog(lines=(worst,) * MAX_LINES)
    assert open_app_log(seal_app_log(full, NAME, PUBLIC), NAME, OWNER) == full


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"lines": []},
        {"left_out": -1, "lines": []},
        {"left_out": True, "lines": []},
        {"left_out": 0, "lines": "text"},
        {"left_out": 0, "lines": [["output", "x", "", ""]]},
        {"left_out": 0, "lines": [["output", 3, "", "", 0]]},
        {"left_out": 0, "lines": [["output", "x", "", "", "1"]]},
        {"left_out": 0, "lines": [["loud", "x", "", "", 0]]},
        {"left_out": 0, "lines": [["output", "x", "", "", -1]]},
        {"left_out": 0, "lines": [["output", "x" * 4097, "", "", 0]]},
        {"left_out": 0, "lines": [["output", "\ud800", "", "", 0]]},
    ],
)
def test_what_was_sealed_and_is_no_log_is_refused(content: object) -> None:
    sealed = hpke_seal(json.dumps(content).encode(), PUBLIC, info=NAME.info())
    with pytest.raises(UnsealError, match="is not a log"):
        open_app_log(sealed, NAME, OWNER)
