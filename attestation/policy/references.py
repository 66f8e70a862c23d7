"""Reference values that can be computed before anything runs.

initdata: the kata and Confidential Containers initdata specification (the digest is that of
the TOML document as it is, by the algorithm that it names). TDX RTMRs: replay of a known
event log. SNP launch digest: AMD publication 56860, section "SNP_LAUNCH_UPDATE", computed by
the optional package ``sev-snp-measure``. Image digest: OCI image specification, descriptors.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attestation.config.toml import TomlError, parse
from attestation.errors import EventLogError, EvidenceError, PolicyError
from attestation.evidence import Tee
from attestation.logs.eventlog import EventLog, ccel_register, pcr_register
from attestation.logs.firmwarelog import boot_claims
from attestation.policy.model import EVENT, ReferenceValue

__all__ = [
    "MAX_INITDATA_BYTES",
    "MONITORS",
    "Initdata",
    "event_references",
    "image_references",
    "initdata_references",
    "log_references",
    "read_initdata",
    "snp_launch_reference",
]

MAX_INITDATA_BYTES: Final = 1024 * 1024
_CCEL_HEADER: Final = b"\x01\0\0\0"
"""A CCEL begins with an event of register 1, a TPM log with one of register 0."""

_ALGORITHMS: Final = ("sha256", "sha384", "sha512")
_HOST_DATA_BYTES: Final = 32
_MRCONFIGID_BYTES: Final = 48
_RTMR1, _RTMR2 = 2, 3
_IMAGE: Final = re.compile(r"(?:[^@\s]{1,512}@)?sha256:([0-9a-f]{64})")
_MAX_VCPUS: Final = 4096
_UNUSABLE: Final = (
    OSError,
    ValueError,
    RuntimeError,
    IndexError,
    KeyError,
    OverflowError,
    AssertionError,
)
"""What ``sev-snp-measure`` raises for files that it cannot use."""

MONITORS: Final = {"qemu": "QEMU", "ec2": "ec2", "gce": "gce"}
"""Virtual machine monitors whose launch of a guest can be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initdata:
    """An initdata document and its digest by the algorithm that it names."""

    version: str
    algorithm: str
    digest: bytes
    entries: tuple[str, ...]

    @property
    def host_data(self) -> bytes:
        """The digest as SNP's HOST_DATA holds it: cut or padded with zeros to 32 bytes."""
        return _fit(self.digest, _HOST_DATA_BYTES)

    @property
    def mrconfigid(self) -> bytes:
        """The digest as TDX's MRCONFIGID holds it: cut or padded with zeros to 48 bytes."""
        return _fit(self.digest, _MRCONFIGID_BYTES)


def read_initdata(data: bytes) -> Initdata:
    """Read an initdata document and compute its digest.

    :raises PolicyError: when it is not one, naming what is wrong.
    """
    if len(data) > MAX_INITDATA_BYTES:
        raise PolicyError(f"initdata: {len(data)} bytes, at most {MAX_INITDATA_BYTES} are read")
    try:
        table = parse(data).table
    except TomlError as error:
        raise PolicyError(f"initdata:{error.line}: {error}") from None
    algorithm, version, entries = (table.get(key) for key in ("algorithm", "version", "data"))
    if algorithm not in _ALGORITHMS:
        raise PolicyError(
            f"initdata: algorithm: must be one of {', '.join(_ALGORITHMS)}, not {algorithm!r}"
        )
    if not isinstance(version, str):
        raise PolicyError('initdata: version: must be text, such as "0.1.0"')
    if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
        raise PolicyError("initdata: data: must be a table of texts")
    return Initdata(
        version=version,
        algorithm=algorithm,
        digest=hashlib.new(algorithm, data).digest(),
        entries=tuple(sorted(entries)),
    )


def initdata_references(data: bytes, *, name: str = "") -> tuple[ReferenceValue, ...]:
    """Return the reference values of an initdata document, for SNP and for TDX.

    :raises PolicyError: when it is not an initdata document.
    """
    initdata = read_initdata(data)
    return (
        ReferenceValue(claim="host_data", value=initdata.host_data, name=name, tee=Tee.SNP),
        ReferenceValue(claim="mrconfigid", value=initdata.mrconfigid, name=name, tee=Tee.TDX),
    )


def log_references(data: bytes, *, tee: Tee, name: str = "") -> tuple[ReferenceValue, ...]:
    """Return the registers that a known event log replays to.

    A CCEL gives the RTMRs of TDX (SHA-384). A TPM log gives PCRs of the SHA-256 bank, or where it
    has no digests for that, of the SHA-384 or SHA-512 bank, as an attester takes them.

    :raises EvidenceError: when the log is malformed.
    :raises EventLogError: when it has no digests of the right kind, or is that of another TEE.
    """
    if tee not in (Tee.TDX, Tee.TPM):
        raise EvidenceError(f"{tee.value} has no registers that a log extends", field="tee")
    ccel = tee is Tee.TDX
    log = EventLog.parse(data)
    if not ccel and log.header.startswith(_CCEL_HEADER):
        raise EventLogError(
            "this is a CCEL, whose registers are those of TDX", hint="name it as one: --tee tdx"
        )
    banks = ("sha384",) if ccel else ("sha256", "sha384", "sha512")
    bank = next((item for item in banks if item in log.sizes), banks[0])
    registers = log.replay(bank, ccel=ccel)
    label = ccel_register if ccel else pcr_register
    suffix = "" if ccel or bank == "sha256" else f".{bank}"
    return tuple(
        ReferenceValue(claim=label(index) + suffix, value=value, name=name, tee=tee)
        for index, value in sorted(registers.items())
        if not (ccel and index == 0)
    )


def event_references(data: bytes, *, name: str = "") -> tuple[ReferenceValue, ...]:
    """Return reference values that name every event of RTMR1 and RTMR2 of a CCEL, for TDX.

    Booted parts have a claim (``boot.N``, ``kernel``, ``cmdline``, ``initrd``), any other digest is
    an ``event``. They identify a launch where the registers themselves are not pinned; see
    :mod:`attestation.policy.launch`.

    :raises EvidenceError: when the log is malformed.
    :raises EventLogError: when an event of these registers has no SHA-384 digest.
    """
    log = EventLog.parse(data)
    booted = boot_claims(log, "sha384", ccel=True)
    found = [(claim, booted[claim]) for claim in sorted(booted) if claim != "firmware"]
    seen = {digest for _, digest in found}
    for event in (*log.extending(_RTMR1), *log.extending(_RTMR2)):
        digest = event.digests.get("sha384")
        if digest is None:
            raise EventLogError(f"event {event.number} has no sha384 digest")
        if digest not in seen:
            seen.add(digest)
            found.append((EVENT, digest))
    return tuple(
        ReferenceValue(claim=claim, value=value, name=name, tee=Tee.TDX) for claim, value in found
    )


def image_references(reference: str, *, name: str = "") -> tuple[ReferenceValue, ...]:
    """Return the digest in ``sha256:…`` or ``registry/image@sha256:…``.

    :raises PolicyError: for a tag, which can name another image later.
    """
    found = _IMAGE.fullmatch(reference)
    if found is None:
        raise PolicyError(
            f"{reference[:80]!r} is not an image by digest",
            hint="name it as registry/image@sha256:…; a tag may point elsewhere tomorrow",
        )
    return (ReferenceValue(claim="image", value=bytes.fromhex(found[1]), name=name),)


def snp_launch_reference(
    *,
    ovmf: Path,
    vcpus: int,
    vcpu_type: str = "EPYC-v4",
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    guest_features: int = 1,
    vmm: str = "qemu",
    name: str = "",
) -> ReferenceValue:
    """Return the launch digest of an SNP guest that is started with these files.

    ``vcpu_type`` is QEMU's name of the CPU model; ``guest_features`` the SEV features of the
    VMSA (1 is SNP alone); ``vmm`` one of :data:`MONITORS`, which differ in what they measure.
    Kernel, initrd and command line are measured where the firmware has a table for their
    hashes.

    :raises PolicyError: when ``sev-snp-measure`` is not installed, or cannot use the files, or
        the firmware has no SEV-SNP metadata.
    """
    if vmm not in MONITORS:
        raise PolicyError(f"vmm: {vmm!r} is not one of {', '.join(MONITORS)}")
    if not 1 <= vcpus <= _MAX_VCPUS:
        raise PolicyError(f"vcpus: must be 1 to {_MAX_VCPUS}, not {vcpus}")
    if (initrd or append) and kernel is None:
        raise PolicyError("initrd and append are measured only together with a kernel")
    guest, types, monitors, firmware = _measuring()
    if vcpu_type not in types.CPU_SIGS:
        known = ", ".join(sorted(types.CPU_SIGS))
        raise PolicyError(f"vcpu_type: {vcpu_type!r} is not one of {known}")
    try:
        if not firmware.OVMF(str(ovmf)).metadata_items():
            raise PolicyError(
                f"{ovmf}: has no SEV-SNP metadata, so no SNP guest starts from it",
                hint="take a build of OVMF that has it, such as Debian's /usr/share/ovmf/OVMF.fd",
            )
        digest: bytes = guest.snp_calc_launch_digest(
            vcpus,
            types.CPU_SIGS[vcpu_type],
            str(ovmf),
            str(kernel) if kernel else None,
            str(initrd) if initrd else None,
            append,
            guest_features,
            "",
            monitors.VMMType[MONITORS[vmm]],
        )
    except _UNUSABLE as error:
        reason = str(error) or type(error).__name__
        raise PolicyError(f"{ovmf}: cannot be measured: {reason}") from None
    return ReferenceValue(claim="launch", value=digest, name=name, tee=Tee.SNP)


def _measuring() -> tuple[Any, Any, Any, Any]:
    try:
        return (
            importlib.import_module("sevsnpmeasure.guest"),
            importlib.import_module("sevsnpmeasure.vcpu_types"),
            importlib.import_module("sevsnpmeasure.vmm_types"),
            importlib.import_module("sevsnpmeasure.ovmf"),
        )
    except ModuleNotFoundError:
        raise PolicyError(
            "the SNP launch digest needs the package sev-snp-measure",
            hint="pip install sev-snp-measure",
        ) from None


def _fit(digest: bytes, size: int) -> bytes:
    return digest[:size].ljust(size, b"\0")
