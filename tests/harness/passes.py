"""Counts how often a job is read: parses of its specification and policy, hashes of its bundle."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from attestation.policy.parse import parse_policy
from fedlearn.job.spec import JobFiles, JobSpec

_PARSERS = {
    JobFiles.load.__func__.__code__: "spec",  # type: ignore[attr-defined]
    JobSpec.from_toml.__func__.__code__: "spec",  # type: ignore[attr-defined]
    JobSpec.from_json.__func__.__code__: "spec",  # type: ignore[attr-defined]
    parse_policy.__code__: "policy",
}


@contextmanager
def passes(bundle: bytes, *, caller: bool = True) -> Iterator[Counter[str]]:
    """Count until the block ends: in threads that start meanwhile and, with ``caller``, in this.

    ``spec`` and ``policy`` are parses, ``hash`` passes of SHA-256 over ``bundle``.
    """
    counted: Counter[str] = Counter()
    lock = threading.Lock()
    real = hashlib.sha256
    ignored = None if caller else threading.current_thread()

    def add(what: str) -> None:
        if threading.current_thread() is not ignored:
            with lock:
                counted[what] += 1

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in _PARSERS:
            add(_PARSERS[frame.f_code])

    def sha256(data: Any = b"", **options: Any) -> Any:
        if data == bundle:
            add("hash")
        return real(data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "sha256", sha256)
        threading.setprofile(count)
        sys.setprofile(count)
        try:
            yield counted
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
