"""Evidence from a TPM 2.0, through the ``tpm2-tools`` commands.

The attestation key (AK) is a restricted signing key, a primary key of the endorsement
hierarchy made persistent in the TPM. A primary key is derived from the TPM's own seed, so
every process of a machine, and every boot, uses the same AK; nothing of it is kept on disk.

PCRs are those of the SHA-256 bank, where the TPM has one, else of its SHA-384 or SHA-512 bank.
Software measures itself into PCR 14, which cannot be reset without restarting the machine.
:mod:`attestation.logs.runtime_events` describes the events, and
:mod:`attestation.attesters.tpm_log` how the log is kept. One directory serves one TPM: all
processes that use the TPM share the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.attesters.kinds import Found, Options
from attestation.attesters.tpm2_tools import (
    BANKS,
    DEFAULT_TCTI,
    Tpm2CommandError,
    Tpm2Tools,
    Workspace,
)
from attestation.attesters.tpm_log import RuntimeLog
from attestation.binding import Bound
from attestation.errors import AttesterError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.eventlog import MAX_LOG_BYTES, EventLog
from attestation.logs.runtime_events import Measurement, measurements, record
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_keys import ObjectAttribute, PublicArea
from attestation.tpm.credential import TpmIdentity, check_credential
from attestation.tpm.endorsement import certificate_der

__all__ = ["DEVICES", "KeyTemplate", "QUOTED_PCRS", "TpmAttester", "find", "open_attester"]

DEVICES: Final = (Path("/dev/tpmrm0"), Path("/dev/tpm0"))
"""Where Linux shows a TPM, the one with a resource manager first."""

QUOTED_PCRS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14)
"""Firmware and boot loader (PC Client profile, table 1), kernel, command line and initial RAM
disk (Linux TPM PCR registry), and what software measured. See :mod:`attestation.policy.launch`."""

_RUNTIME_PCR: Final = 14
_SIGNATURE_HASH: Final = "sha256"
"""The hash of the keys in ``_AKS``, whatever bank they quote."""

_PCR_COUNT: Final = 24
_AK_ATTRIBUTES: Final = "restricted|sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"
_AK_REQUIRED: Final = (
    ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
    | ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
)
_RC_HANDLE: Final = 0x18B


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """An algorithm for tpm2-tools, the persistent handle for its key, and how it signs.

    Handles 0x81010000 to 0x8101ffff are for primary keys of the endorsement hierarchy
    (TCG Registry of Reserved TPM 2.0 Handles, table 2).
    """

    algorithm: str
    handle: str
    scheme: str = ""


_AKS: Final = {
    "ecdsa": KeyTemplate("ecc256:ecdsa-sha256:null", "0x8101fe14", "ecdsa"),
    "rsassa": KeyTemplate("rsa2048:rsassa-sha256:null", "0x8101fe15", "rsassa"),
    "rsapss": KeyTemplate("rsa2048:rsapss-sha256:null", "0x8101fe16", "rsapss"),
}
_EKS: Final = {
    "ecc": (KeyTemplate("ecc", "0x81010002"), "0x01c0000a"),
    "rsa": (KeyTemplate("rsa", "0x81010001"), "0x01c00002"),
}
"""Endorsement keys and the NV indices of their certificates (TCG EK profile, 2.2.1.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registers:
    """What is quoted: ``pcrs`` of ``bank``, and the log of the runtime register."""

    bank: str
    pcrs: tuple[int, ...]
    log: RuntimeLog


class TpmAttester:
    """Makes evidence with the TPM at ``tcti``; an :class:`~attestation.attesters.Attester`.

    ``directory``     private state (mode 0700), one for each TPM, shared by its processes
    ``scope``         the job whose measurements are this process's own; use a name that
                      changes with the job's content, since one claim of one scope has one
                      value until the machine restarts
    ``ak``            ``ecdsa`` (P-256), ``rsassa`` or ``rsapss`` (RSA 2048)
    ``ek``            ``ecc`` (P-256) or ``rsa`` (2048)
    ``pcrs``          quoted PCRs; 14 is always among them. All are of one bank
    ``firmware_log``  the firmware's TCG2 log (``binary_bios_measurements`` of securityfs);
                      every PCR that it extends is quoted as well
    """

    def __init__(
        self,
        directory: Path,
        *,
        tcti: str = DEFAULT_TCTI,
        scope: str = "",
        ak: str = "ecdsa",
        ek: str = "ecc",
        pcrs: Iterable[int] = QUOTED_PCRS,
        firmware_log: Path | None = None,
    ) -> None:
        if ak not in _AKS or ek not in _EKS:
            raise ValueError(f"ak is one of {sorted(_AKS)}, ek one of {sorted(_EKS)}")
        Measurement(claim="app", digest=bytes(32), scope=scope)
        self._tools = Tpm2Tools(tcti)
        self._scope = scope
        self._ak = _AKS[ak]
        self._ek, self._ek_certificate_index = _EKS[ek]
        base = _read_firmware_log(firmware_log) if firmware_log is not None else None
        measured = {event.index for event in base.events if event.extends} if base else ()
        self._pcrs = tuple(sorted({_RUNTIME_PCR, *pcrs, *measured}))
        if not all(0 <= pcr < _PCR_COUNT for pcr in self._pcrs):
            raise ValueError(f"PCRs are numbered 0 to {_PCR_COUNT - 1}")
        self._directory = directory
        self._base = base
        self._found: _Registers | None = None
        self._ak_area: PublicArea | None = None

    @staticmethod
    def detect(tcti: str = DEFAULT_TCTI) -> str:
        """Return why the TPM at ``tcti`` cannot be used now; empty when it can."""
        tools = Tpm2Tools(tcti)
        if reason := tools.unavailable:
            return reason
        try:
            with tools.workspace() as work:
                work.bank(QUOTED_PCRS)
        except AttesterError as error:
            return str(error)
        return ""

    @property
    def tee(self) -> Tee:
        """:attr:`Tee.TPM`."""
        return Tee.TPM

    @property
    def attestation_key(self) -> PublicArea:
        """The AK, made on first use.

        :raises AttesterError: when the TPM cannot be used, or the handle holds another key.
        """
        if self._ak_area is None:
            with self._tools.workspace(objects=True) as work:
                self._ak_area = self._provide_ak(work)
        return self._ak_area

    def identity(self) -> TpmIdentity:
        """Return EK, AK and the EK's certificate, where the TPM has one, for enrollment.

        :raises AttesterError: when the TPM cannot be used.
        """
        ak = self.attestation_key
        with self._tools.workspace(objects=True) as work:
            ek = self._provide_ek(work)
            certificate = self._read_ek_certificate(work)
        return TpmIdentity(ek=ek, ak=ak, ek_certificate=certificate)

    def activate(self, blob: bytes) -> bytes:
        """Answer a challenge of :func:`attestation.tpm.credential.challenge_identity`.

        :raises AttesterError: when this TPM cannot open it: it is for another EK or AK, or
            altered.
        """
        try:
            check_credential(blob)
        except EvidenceError as error:
            raise AttesterError(f"not a challenge that activatecredential reads: {error}") from None
        self.identity()
        with self._tools.workspace(objects=True) as work:
            work.write("credential", blob)
            work.run("startauthsession", "-Q", "--policy-session", "-S", "session.ctx")
            work.run("policysecret", "-Q", "-S", "session.ctx", "-c", "e")
            return work.run(
                *("activatecredential", "-Q", "-c", self._ak.handle, "-C", self._ek.handle),
                *("-i", "credential", "-o", "/dev/stdout", "-P", "session:session.ctx"),
            )

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` (32 bytes) as ``claim`` of this scope into PCR 14 and its log.

        A value that was measured before in this boot is not measured again, so that a client can
        restart.

        :raises AttesterError: when this boot has measured another value for the claim, when
            something else extended the register, or when the TPM cannot be used.
        """
        try:
            measured = Measurement(claim=claim, digest=digest, scope=self._scope)
        except ValueError as error:
            raise AttesterError(str(error)) from None
        found = self._registers()
        with found.log.held() as lock, self._tools.workspace(locks=(lock,)) as work:
            work.run("pcrread", "-Q", "-o", "register", f"{found.bank}:{_RUNTIME_PCR}")
            log = found.log.load(work.read("register"))
            for other in measurements(log, _RUNTIME_PCR, found.bank):
                if other.name == measured.name:
                    if other.digest == measured.digest:
                        return
                    raise AttesterError(
                        f"{measured.name} was measured as {other.digest.hex()} in this boot",
                        hint="use another scope, or restart the machine (or software TPM)",
                    )
            log = record(log, measured, _RUNTIME_PCR)
            found.log.store(log)
            value = log.events[-1].digests[found.bank].hex()
            work.run("pcrextend", "-Q", f"{_RUNTIME_PCR}:{found.bank}={value}")

    def collect(self, binding: Bound) -> Evidence:
        """Return a quote over ``binding`` and the PCRs, with the log that explains it.

        :raises AttesterError: when the TPM cannot be used now, it has no bank with these PCRs,
            or PCR 14 is not the value that our log replays to.
        """
        found = self._registers()
        ak = self.attestation_key
        selection = f"{found.bank}:" + ",".join(map(str, found.pcrs))
        with found.log.held() as lock, self._tools.workspace(locks=(lock,)) as work:
            work.run(
                *("quote", "-Q", "-c", self._ak.handle, "-l", selection),
                *("--scheme", self._ak.scheme, "-g", _SIGNATURE_HASH),
                *("-q", binding.qualifying_data().hex()),
                *("-m", "attest", "-s", "signature", "-o", "pcrs", "-F", "values"),
            )
            attest, signature, values = (
                work.read(name) for name in ("attest", "signature", "pcrs")
            )
            try:
                quote = TpmQuote.assemble(
                    attest=attest,
                    signature=signature,
                    ak=ak.raw,
                    pcr_values=values,
                    scope=self._scope,
                )
            except EvidenceError as error:
                raise AttesterError(f"the TPM made a quote that cannot be read: {error}") from error
            quoted = quote.pcrs.get(found.bank, {})
            if missing := set(found.pcrs).difference(quoted):
                raise AttesterError(
                    f"the TPM quoted no value of the {found.bank} bank for the PCRs "
                    f"{', '.join(map(str, sorted(missing)))}"
                )
            log = found.log.load(quoted[_RUNTIME_PCR])
        return Evidence(
            tee=Tee.TPM, quote=quote.to_bytes(), event_log=found.log.complete(log).to_bytes()
        )

    def _registers(self) -> _Registers:
        """Find out once what is quoted: a bank changes only while the machine starts."""
        if self._found is None:
            among = self._base.sizes if self._base is not None else BANKS
            with self._tools.workspace() as work:
                bank = work.bank(self._pcrs, tuple(among))
            log = RuntimeLog(self._directory, _RUNTIME_PCR, bank, self._base)
            self._found = _Registers(bank=bank, pcrs=self._pcrs, log=log)
        return self._found

    def _provide_ak(self, work: Workspace) -> PublicArea:
        area = _read_public(work, self._ak.handle)
        if area is None:
            work.run(
                *("createprimary", "-Q", "-C", "e", "-G", self._ak.algorithm),
                *("-a", _AK_ATTRIBUTES, "-c", "ak.ctx"),
            )
            work.run("evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", self._ak.handle)
            area = _read_public(work, self._ak.handle)
        if area is None or area.attributes & _AK_REQUIRED != _AK_REQUIRED:
            raise AttesterError(
                f"{self._ak.handle} holds a key that is not a restricted signing key",
                hint=f"remove it: tpm2_evictcontrol -C o -c {self._ak.handle}",
            )
        return area

    def _provide_ek(self, work: Workspace) -> PublicArea:
        area = _read_public(work, self._ek.handle)
        if area is None:
            work.run("createek", "-Q", "-G", self._ek.algorithm, "-c", self._ek.handle)
            area = _read_public(work, self._ek.handle)
        if area is None:
            raise AttesterError(f"no endorsement key at {self._ek.handle}")
        return area

    def _read_ek_certificate(self, work: Workspace) -> bytes:
        try:
            data = work.run("nvread", "-C", "o", self._ek_certificate_index)
        except Tpm2CommandError as error:
            if error.code == _RC_HANDLE:
                return b""
            raise
        try:
            return certificate_der(data)
        except EvidenceError as error:
            raise AttesterError(
                f"NV index {self._ek_certificate_index} holds no certificate: {error}"
            ) from error


def _read_public(work: Workspace, handle: str) -> PublicArea | None:
    try:
        work.run("readpublic", "-Q", "-c", handle, "-o", "public")
    except Tpm2CommandError as error:
        if error.code == _RC_HANDLE:
            return None
        raise
    try:
        return PublicArea.parse_sized(work.read("public"))
    except EvidenceError as error:
        raise AttesterError(f"{handle} holds a key that cannot be used: {error}") from error


def _read_firmware_log(path: Path) -> EventLog:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LOG_BYTES + 1)
        return EventLog.parse(data)
    except OSError as error:
        raise AttesterError(
            f"the firmware's event log {path} cannot be read: {error.strerror}",
            hint="it is readable by root, where securityfs is mounted",
        ) from error
    except EvidenceError as error:
        raise AttesterError(f"{path}: {error}") from error


def find(devices: Sequence[Path] = DEVICES) -> Found:
    """See :mod:`attestation.attesters.kinds`."""
    device = next((path for path in devices if path.exists()), None)
    why = f"{device} is there" if device else "there is no TPM device"
    return Found(kind="tpm", present=device is not None, why=why)


def open_attester(options: Options) -> TpmAttester:
    """See :mod:`attestation.attesters.kinds`."""
    tcti = options.tcti or DEFAULT_TCTI
    return TpmAttester(options.state / "tpm", tcti=tcti, scope=options.scope)
