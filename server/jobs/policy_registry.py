"""Decides which appraisal policies a coordinator accepts from its operators.

Where ``server.toml`` names operators' policy keys, a policy is accepted when one of them signed
it and it is not older than the newest accepted policy of its name. The accepted versions are read
from the ledger, of which a rollback is detected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attestation.errors import EvidenceError, FreshnessError
from attestation.policy.launch import require_launch_identity
from attestation.policy.model import AppraisalPolicy
from attestation.policy.sign import signer_of, verify_policy

__all__ = ["PolicyRegistry"]

Entries = Callable[[], Iterator[Mapping[str, Any]]]
"""Returns the bodies of the ledger's ``policy`` entries, oldest first."""


class PolicyRegistry:
    """Checks policies when they are submitted, and again when a job continues.

    :param keys: SHA-256 of the SPKI of each key that may sign; empty: no signature is required.
    """

    def __init__(self, *, keys: frozenset[bytes], entries: Entries) -> None:
        self._keys = keys
        self._entries = entries
        self._lock = threading.RLock()

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Exclude other decisions between a check and its entry in the ledger."""
        with self._lock:
            yield

    def check(self, policy: AppraisalPolicy, signature: bytes) -> bytes:
        """Return the digest of the key that signed a new policy; empty when it is not signed.

        :raises AttestationError: when it pins no launch identity of a TEE that it accepts, lacks a
            required signature, has a signature of something else, or a newer one of its name was
            accepted before.
        """
        require_launch_identity(policy)
        signer = self._signer(policy, signature)
        if self._keys:
            self._check_newest(policy)
        return signer

    def check_again(self, policy: AppraisalPolicy, signature: bytes, *, job: str) -> None:
        """Check the policy of a job before the job continues.

        :meth:`server.jobs.records.job_store.JobStore.get` checks against the ledger that it is the
        one in force.

        :raises AttestationError: when its signature no longer counts, or it pins no launch
            identity of a TEE that it accepts.
        """
        require_launch_identity(policy, where=f"the policy of job {job}")
        self._signer(policy, signature)

    def entry(self, policy: AppraisalPolicy, signer: bytes) -> dict[str, Any]:
        """Return the fields of a policy's entry in the ledger, besides its job and digest."""
        return {"name": policy.name, "version": policy.version, "signer": signer.hex()}

    def _signer(self, policy: AppraisalPolicy, signature: bytes) -> bytes:
        if not signature:
            if not self._keys:
                return b""
            raise EvidenceError(
                "is missing, and this coordinator accepts signed policies only",
                field="policy signature",
                hint="`fedlearn policy sign policy.toml --key operator.pem`, then submit again",
            )
        keys = self._keys or {signer_of(signature)}
        return verify_policy(policy, signature, key_digests=keys)

    def _check_newest(self, policy: AppraisalPolicy) -> None:
        signers = {key.hex() for key in self._keys}
        newest, digest = 0, ""
        for body in self._entries():
            if body.get("name") == policy.name and body.get("signer") in signers:
                version = _version(body)
                if version >= newest:
                    newest, digest = version, str(body.get("policy"))
        if policy.version < newest:
            raise FreshnessError(
                f"version {policy.version} of {policy.name!r} is older than {newest}, which was "
                "accepted before",
                step="policy version",
                hint="give the policy a higher version and sign it again",
            )
        if policy.version == newest and policy.digest.hex() != digest:
            raise FreshnessError(
                f"version {newest} of {policy.name!r} was accepted with another content",
                step="policy version",
                hint="a version grows with every change: raise it and sign again",
            )


def _version(body: Mapping[str, Any]) -> int:
    found = body.get("version", 0)
    return found if isinstance(found, int) else 0
