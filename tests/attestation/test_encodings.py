"""JSON objects of documents that are not ours: read once, or refused with a reason."""

from __future__ import annotations

import pytest

from attestation.encodings import json_object, sniffed_object
from attestation.errors import EvidenceError


def test_an_object_is_read() -> None:
    assert json_object(b'{"a": [1, {"b": null}]}', "it") == {"a": [1, {"b": None}]}
    assert json_object('{"a": 1}', "it") == {"a": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JSON document"),
        (b"\xff{}", "not a JSON document"),
        (b"{" * 100_000, "not a JSON document"),
        (b'{"a":' * 100_000, "not a JSON document"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b'{"a": 1, "a": 1}', "has the key 'a' twice"),
        (b'{"a": [{"b": 1, "c": 2, "b": 1}]}', "has the key 'b' twice"),
    ],
)
def test_what_is_no_object_or_two_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(EvidenceError, match=reason) as refused:
        json_object(data, "it")
    assert refused.value.field == "it"


def test_other_data_are_not_taken_for_an_object() -> None:
    assert sniffed_object(b' {"a": 1}') == {"a": 1}
    for data in (b"", b"[1]", b'"{"', b"{", b"{" * 100_000, b"\x30\x82"):
        assert sniffed_object(data) is None
