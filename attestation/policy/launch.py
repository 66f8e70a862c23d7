"""Launch identity: the claims of each TEE that identify what was started, and must be pinned.

Claims that software makes about itself count only when its launch is pinned. So a policy pins, for
each kind of evidence that it accepts:

==============  ===================================================================
``snp``         ``launch``, or ``id_key_digest`` (the key that signed the launch digest)
``tdx``         ``mrtd``; ``rtmr1`` (boot loader, kernel); ``rtmr2`` (command line, initrd)
``sgx``         ``mrenclave``, or ``mrsigner`` with ``isv_prod_id`` and ``min_isv_svn``
``tpm``         ``pcr.0`` (firmware); ``pcr.4`` (boot loader, kernel); the command line
``azure-vtpm``  ``launch``, ``id_key_digest`` or ``mrtd`` (paravisor); ``pcr.4``; the command line
``sample``      ``software`` or ``launch``, which the holder of the development key reports
``nvidia``      nothing: a GPU does not identify the software that uses it; component only
==============  ===================================================================

The command line is in ``pcr.8`` (GRUB), ``pcr.9`` (GRUB, the EFI stub of Linux), ``pcr.12``
(systemd-boot), or in ``pcr.11`` (a unified kernel image) together with ``pcr.12``, which then shows
that nothing was added. A PCR counts in every bank.

Log events can replace an RTMR when ``kernel`` or ``boot.N`` (for ``rtmr1``), ``cmdline`` (for
``rtmr2``) is pinned, *and* reference values name every event of that register: the sender of a log
can choose the labels in it, but not the digests.

A register that is zero has no measurement and identifies nothing. There is one exception, which a
policy requests by pinning the value zero: a TPM whose ``pcr.0`` is zero, such as a software TPM,
has no firmware that measures, so its other registers identify no more. It proves nothing about
hardware; see :func:`launch_warnings`.

Sources: AMD publication 56860 (``MEASUREMENT``, ``ID_BLOCK``); Intel TDX module base
specification (MRTD, RTMR) with the UEFI 2.10 CC mapping of PCRs to RTMRs (section 38.4.1);
Intel SGX (MRENCLAVE, MRSIGNER, ISVPRODID, ISVSVN); TCG PC Client Platform Firmware Profile,
table 1 (PCRs); the Linux TPM PCR registry of the UAPI group (PCRs 8 to 12).

The page is docs/adr/0011-launch-identity.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from attestation.errors import PolicyError
from attestation.evidence import Claims, Tee
from attestation.policy.model import EVENT, AppraisalPolicy, ReferenceValue
from attestation.policy.result import Finding, Tier

__all__ = [
    "PCR_BANKS",
    "applicable",
    "launch_errors",
    "launch_finding",
    "launch_warnings",
    "require_launch_identity",
]

_Pinned = Mapping[str, tuple[bytes, ...]]
"""Pinned values by claim; none for the numbers of ``[sgx]``."""

PCR_BANKS: Final = ("", ".sha384", ".sha512")
"""Suffixes of ``pcr.N`` in the names of claims; empty for the SHA-256 bank."""

_IMAGE: Final = re.compile(r"kernel|boot\.[0-9]+")


@dataclass(frozen=True, slots=True)
class _Option:
    """Claims that identify one part together; all of them have to be pinned.

    ``events``  pinned as well, one of them, in place of the register ``claims[0]`` when every
                event of that register is named
    ``zero``    claims whose value may be zero beside the others
    """

    claims: tuple[str, ...]
    events: re.Pattern[str] | None = None
    zero: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of what was started, and the options that identify it."""

    name: str
    options: tuple[_Option, ...]

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(' and '.join(o.claims) for o in self.options)})"


def _part(name: str, *options: tuple[str, ...]) -> _Part:
    return _Part(name, tuple(map(_Option, options)))


_BOOTED: Final = (
    _part("what firmware started", ("pcr.4",)),
    _Part(
        "the kernel's command line",
        (
            _Option(("pcr.8",)),
            _Option(("pcr.9",)),
            _Option(("pcr.12",)),
            _Option(("pcr.11", "pcr.12"), zero=frozenset({"pcr.12"})),
        ),
    ),
)
_PARTS: Final[Mapping[Tee, tuple[_Part, ...]]] = {
    Tee.SNP: (_part("the launch", ("launch",), ("id_key_digest",)),),
    Tee.TDX: (
        _part("the firmware", ("mrtd",)),
        _Part("the kernel", (_Option(("rtmr1",), events=_IMAGE),)),
        _Part("the kernel's command line", (_Option(("rtmr2",), events=re.compile("cmdline")),)),
    ),
    Tee.SGX: (_part("the enclave", ("mrenclave",), ("mrsigner", "isv_prod_id", "min_isv_svn")),),
    Tee.TPM: (_part("the firmware", ("pcr.0",)), *_BOOTED),
    Tee.AZURE_VTPM: (
        _part("the paravisor", ("launch",), ("id_key_digest",), ("mrtd",)),
        *_BOOTED,
    ),
    Tee.SAMPLE: (_part("the software that it reports", ("software",), ("launch",)),),
}
_NO_TEE: Final = "the software that uses the GPU"
_LABELS: Final[Mapping[Tee, tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]]] = {
    Tee.TDX: (
        (re.compile(r"boot\.[0-9]+"), ("rtmr1",)),
        (re.compile("kernel"), ("rtmr1", "rtmr2")),
        (re.compile("cmdline|initrd"), ("rtmr2",)),
    ),
    Tee.TPM: (
        (re.compile(r"boot\.[0-9]+"), ("pcr.4",)),
        (re.compile("kernel"), ("pcr.4", "pcr.8", "pcr.9")),
        (re.compile("cmdline"), ("pcr.8", "pcr.9")),
        (re.compile("initrd"), ("pcr.9",)),
    ),
}


def applicable(policy: AppraisalPolicy, tee: Tee) -> Iterator[ReferenceValue]:
    """Yield the reference values that evidence of ``tee`` must match.

    Those that are limited to another TEE are left out, as are those for ``event``, which require
    nothing.
    """
    for item in policy.references:
        if item.tee in (None, tee) and item.claim != EVENT:
            yield item


def launch_errors(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Return a sentence for each accepted TEE whose launch identity ``policy`` does not pin.

    Evidence of such a TEE is never affirmed. The part about the coordinator is included.
    """
    found = list(_errors(policy))
    if policy.coordinator is not None:
        found += [f"coordinator: {text}" for text in _errors(policy.coordinator)]
    return tuple(found)


def require_launch_identity(policy: AppraisalPolicy, *, where: str = "policy.toml") -> None:
    """Check that ``policy`` pins a launch identity of every TEE that it accepts.

    :raises PolicyError: naming the TEEs and what is missing; ``where`` names the policy.
    """
    if found := launch_errors(policy):
        raise PolicyError(
            f"{where}: {'; '.join(found)}",
            hint="pin what was started with [[reference]]; `fedlearn policy init` writes them from "
            "evidence, `fedlearn policy reference` from files",
        )


def launch_warnings(policy: AppraisalPolicy) -> Iterator[str]:
    """Yield a warning for each weak part of a pinned launch identity.

    Such parts are the labels of a log, and a software TPM.
    """
    for tee in policy.accept:
        pinned = _pinned(policy, tee)
        if tee is Tee.TPM and _unmeasured(pinned, None):
            yield (
                "pcr.0 is zero: this accepts TPMs whose boot nothing measured, such as software "
                "TPMs, which prove nothing about hardware"
            )
        signed = "id_key_digest" in pinned and "launch" not in pinned
        if signed and policy.snp.min_guest_svn is None:
            yield (
                f"id_key_digest of {tee.value} without launch and [snp] min_guest_svn accepts "
                "every image that the key ever signed"
            )
        labels = Tee.TPM if tee is Tee.AZURE_VTPM else tee
        for pattern, registers in _LABELS.get(labels, ()):
            missing = [item for item in registers if not any(_spelled(item, pinned))]
            for claim in sorted(filter(pattern.fullmatch, pinned)):
                if missing:
                    yield (
                        f"{claim} of {tee.value} is the label of a log event, which the booted "
                        f"software can choose: pin {' and '.join(missing)} as well"
                    )


def launch_finding(policy: AppraisalPolicy, claims: Claims, now: datetime) -> Finding:
    """Return the finding whether ``policy`` pins the launch identity in ``claims``.

    The findings of the reference values show whether the values are the pinned ones.
    """
    parts = _PARTS.get(claims.tee, ())
    pinned = _pinned(policy, claims.tee)
    named = frozenset(
        item.value
        for item in policy.references
        if item.tee in (None, claims.tee) and item.valid_at(now)
    )
    missing = _missing(claims.tee, pinned, claims, named) if parts else [_NO_TEE]
    actual = f"nothing pins {'; '.join(missing)}" if missing else "pinned"
    if claims.tee is Tee.TPM and _unmeasured(pinned, claims):
        actual = "pinned as zero: nothing measured the boot of this TPM, which proves nothing"
    return Finding(
        claim="launch_identity",
        tier=Tier.CONTRAINDICATED if missing else Tier.AFFIRMING,
        expected="; ".join(map(str, parts)) or "a TEE that the GPU is a component of",
        actual=actual,
        remedy="pin it with a [[reference]] whose value is not zero; `fedlearn policy init` "
        "writes them"
        if missing
        else "",
    )


def _errors(policy: AppraisalPolicy) -> Iterator[str]:
    for tee in policy.accept:
        pinned = _pinned(policy, tee)
        if tee not in _PARTS:
            yield f"{tee.value} cannot be accepted alone: accept the TEE that it is a component of"
        elif missing := _missing(tee, pinned, None):
            yield (
                f"nothing pins {'; '.join(missing)} of {tee.value}, so its evidence is refused, "
                "whatever else matches"
            )


def _missing(
    tee: Tee, pinned: _Pinned, claims: Claims | None, named: frozenset[bytes] = frozenset()
) -> list[str]:
    """Return the names of the parts that nothing pins.

    With ``claims`` also those that are pinned as zero, and those with a log event whose digest is
    not in ``named``.
    """
    parts = _PARTS[tee]
    if tee is Tee.TPM and _unmeasured(pinned, claims):
        return []
    return [
        str(part)
        for part in parts
        if not any(_holds(option, pinned, claims, named) for option in part.options)
    ]


def _holds(
    option: _Option, pinned: _Pinned, claims: Claims | None, named: frozenset[bytes]
) -> bool:
    if all(_counts(name, option.zero, pinned, claims) for name in option.claims):
        return True
    if option.events is None or not any(map(option.events.fullmatch, pinned)):
        return False
    if claims is None:
        return True
    events = claims.attributes.get(f"log.{option.claims[0]}.events")
    return isinstance(events, tuple) and {bytes.fromhex(item) for item in events} <= named


def _counts(name: str, zero: frozenset[str], pinned: _Pinned, claims: Claims | None) -> bool:
    """Return whether ``name`` is pinned, and not zero in ``claims`` if they have it."""
    if name in zero:
        return any(_spelled(name, pinned))
    for claim in _spelled(name, pinned):
        shown = claims.measurements.get(claim, b"\1") if claims is not None else b"\1"
        if any(shown) and (not pinned[claim] or any(map(any, pinned[claim]))):
            return True
    return False


def _unmeasured(pinned: _Pinned, claims: Claims | None) -> bool:
    """Return whether the policy accepts a TPM without measuring firmware, and this is one."""
    for claim in _spelled("pcr.0", pinned):
        zero = [value for value in pinned[claim] if not any(value)]
        if zero and (claims is None or claims.measurements.get(claim) in zero):
            return True
    return False


def _spelled(name: str, pinned: _Pinned) -> Iterator[str]:
    """Yield the pinned claims for ``name``: a PCR has one name for each bank."""
    banks = PCR_BANKS if name.startswith("pcr.") else ("",)
    for bank in banks:
        if name + bank in pinned:
            yield name + bank


def _pinned(policy: AppraisalPolicy, tee: Tee) -> _Pinned:
    found: dict[str, list[bytes]] = {}
    for item in applicable(policy, tee):
        found.setdefault(item.claim, []).append(item.value)
    if tee is Tee.SGX:
        for name, values in (
            ("mrenclave", policy.sgx.mrenclave),
            ("mrsigner", policy.sgx.mrsigner),
        ):
            if values:
                found.setdefault(name, []).extend(values)
        for name in ("isv_prod_id", "min_isv_svn"):
            if getattr(policy.sgx, name) is not None:
                found[name] = []
    return {name: tuple(values) for name, values in found.items()}
