"""Verifiers of evidence. There is one module for each kind, imported when first needed.

A verifier is pure. It takes bytes, a binding, trust anchors and the time, and returns
:class:`attestation.evidence.Claims` or raises an :class:`attestation.errors.AttestationError`
that names the step which failed. Whether the claims are good enough is decided by
:func:`attestation.policy.appraise.appraise`.

A process attests with sample evidence, which proves nothing about hardware:

>>> from datetime import UTC, datetime
>>> from cryptography.hazmat.primitives.asymmetric import ec
>>> from attestation.attesters.sample import SampleAttester
>>> from attestation.binding import Binding, Role
>>> from attestation.trust import TrustAnchors, key_digest
>>> key = ec.generate_private_key(ec.SECP256R1())
>>> attester = SampleAttester(key, hardware_id=b"board 1")
>>> attester.extend("app", bytes(32))
>>> binding = Binding(
...     role=Role.CLIENT, nonce=bytes(32), verifier_id=bytes(32), tls_key=b"a key",
...     hpke_key=b"", node_id="north", workload=bytes(32),
... )
>>> evidence = attester.collect(binding)
>>> trust = TrustAnchors(sample_keys=frozenset({key_digest(key.public_key())}))
>>> now = datetime.now(UTC)
>>> claims = verify(evidence, binding=binding, trust=trust, now=now)
>>> claims.tee.value, claims.measurements["app"] == bytes(32)
('sample', True)

A key that is not pinned is refused:

>>> verify(evidence, binding=binding, trust=TrustAnchors(), now=now)  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
attestation.errors.EndorsementError: sample key: signed by a key that is not ...

The pages are docs/reference/api/verifiers.md and docs/contributing/add-a-verifier.md.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol, cast

from attestation.binding import Bound
from attestation.errors import VerificationError
from attestation.evidence import Claims, Evidence, Tee
from attestation.trust import TrustAnchors

__all__ = ["Verifier", "verifier_for", "verify"]

_MODULES: Final[dict[Tee, str]] = {
    Tee.TDX: "attestation.verifiers.tdx",
    Tee.SGX: "attestation.verifiers.tdx",
    Tee.SNP: "attestation.verifiers.snp",
    Tee.TPM: "attestation.verifiers.tpm",
    Tee.AZURE_VTPM: "attestation.verifiers.azure",
    Tee.NVIDIA: "attestation.verifiers.nvidia",
    Tee.SAMPLE: "attestation.verifiers.sample",
}


class Verifier(Protocol):
    """Verifies one kind of evidence."""

    def verify(
        self,
        evidence: Evidence,
        *,
        binding: Bound | None,
        trust: TrustAnchors,
        now: datetime,
    ) -> Claims:
        """Return the claims of genuine evidence.

        ``binding`` is compared with the report data; ``None`` leaves it unchecked, and
        ``claims.bound`` is then false. ``now`` is an aware time.
        Component evidence is not verified here; :func:`verify` does that.

        :raises EvidenceError: when the bytes are malformed.
        :raises VerificationError: when they are not genuine, fresh or bound.
        """
        ...


@functools.cache
def verifier_for(tee: Tee) -> Verifier:
    """Return the verifier of ``tee``.

    :raises VerificationError: when this installation has none.
    """
    name = _MODULES[tee]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise VerificationError(
            f"this installation cannot verify {tee.value} evidence ({error.name} is missing)",
            step="verifier",
        ) from error
    return cast("Verifier", module.VERIFIER)


def verify(
    evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
) -> Claims:
    """Verify ``evidence`` and each of its components; return the claims of all of them.

    A component that is not genuine makes the whole evidence not genuine. A component that this
    installation cannot verify is returned with its claims named in ``unverified``. The GPUs and
    NVSwitches among them must be different devices of one machine.

    :raises ValueError: when ``now`` is naive.
    :raises AttestationError: as :meth:`Verifier.verify`.
    """
    if now.tzinfo is None:
        raise ValueError("the time of a verification must be aware")
    claims = _verify_one(evidence, binding, trust, now)
    if not evidence.components:
        return claims
    components = tuple(_verify_one(item, binding, trust, now) for item in evidence.components)
    if any(item.tee is Tee.NVIDIA for item in components):
        from attestation.verifiers.nvidia_topology import check_devices

        components = check_devices(components)
    return replace(claims, components=(*claims.components, *components))


def _verify_one(
    evidence: Evidence, binding: Bound | None, trust: TrustAnchors, now: datetime
) -> Claims:
    verifier = verifier_for(evidence.tee)
    claims = verifier.verify(evidence, binding=binding, trust=trust, now=now)
    if claims.tee is not evidence.tee:
        raise VerificationError(
            f"the evidence is labelled {evidence.tee.value}, its content is {claims.tee.value}",
            step="format",
        )
    if binding is not None and not claims.bound and claims.tee is not Tee.NVIDIA:
        raise VerificationError("the binding was not checked", step="binding")
    return claims
