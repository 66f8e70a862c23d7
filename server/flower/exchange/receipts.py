"""The answers that were handed to a job's aggregator, from which the ledger gets its facts.

The aggregator reports which answer it accepted, by its question. The sender, its admission, the
number of bytes and their digest are those that the exchange has recorded.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedlearn.errors import JobError
from server.flower.job_plan import Reply

__all__ = ["Receipts", "ledger_digest"]

_MAX_HELD: Final = 100_000
"""More answers than all sites of a job have open; the oldest are forgotten beyond it."""


@dataclass(frozen=True, slots=True)
class _Receipt:
    site: str
    size: int
    key: str
    digest: str


class Receipts:
    """The answers that an aggregator has got and not reported yet. Not thread-safe.

    :param secret: that of the job's noise, under privacy; see :func:`ledger_digest`.
    """

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret
        self._held: OrderedDict[str, _Receipt] = OrderedDict()

    def note(self, reply: Reply) -> None:
        """Remember an answer that is handed over."""
        digest = ledger_digest(reply.digest, self._secret)
        self._held[reply.question] = _Receipt(reply.site, reply.size, reply.key, digest)
        while len(self._held) > _MAX_HELD:
            self._held.popitem(last=False)

    def fill(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return an event's fields with the facts of the answer that it is about.

        Every answer makes one event.

        :raises JobError: for an update that was not handed over, was reported before, or is
            reported as that of another site.
        """
        found = dict(fields)
        question = found.pop("question", None)
        receipt = self._held.pop(question, None) if isinstance(question, str) else None
        if kind != "update.received":
            return found
        if receipt is None:
            raise JobError("an update that no site has sent, or that was reported before")
        if found.get("site") != receipt.site:
            site = str(found.get("site"))[:64]
            raise JobError(f"an update of {receipt.site} is reported as one of {site}")
        return found | {"bytes": receipt.size, "key": receipt.key, "digest": receipt.digest}


def ledger_digest(digest: str, secret: bytes) -> str:
    """Return the digest of an update as the ledger has it, in hexadecimal.

    With a secret it is keyed (HMAC-SHA256, RFC 2104): a guess of an update could be tested against
    a digest without a key.
    """
    if not secret or not digest:
        return digest
    return hmac.digest(secret, b"update\0" + bytes.fromhex(digest), "sha256").hex()
