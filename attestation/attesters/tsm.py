"""Evidence from the guest's own firmware interface: configfs-tsm, for TDX and SEV-SNP.

Interface: Linux, ``Documentation/ABI/testing/configfs-tsm-report`` (6.7 and later). A
directory made below ``report`` has the attributes ``inblob``, ``outblob``, ``auxblob``,
``provider`` and ``generation``. Every write increments ``generation``; it is compared before and
after the report is read, so that a report over another process's ``inblob`` is never returned.

What software measures goes into RTMR3 where the kernel offers that (``tdx_guest``
measurements, 6.16 and later), with the events in our own log behind the firmware's CCEL; on
SNP, and on TDX without it, into a register of this process that report data covers.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Final, Protocol

from attestation.attesters.kinds import Found, Options
from attestation.attesters.runtime import RuntimeRegister
from attestation.attesters.tpm_log import RuntimeLog
from attestation.binding import Bound
from attestation.errors import AttesterError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.logs.eventlog import MAX_LOG_BYTES, EventLog
from attestation.logs.firmwarelog import RTMR_RUNTIME
from attestation.logs.runtime_events import Measurement, measurements, record
from attestation.quotes.snp import parse_certificate_table

__all__ = [
    "CCEL",
    "ConfigFs",
    "REPORTS",
    "RTMR3",
    "ReportFiles",
    "TsmAttester",
    "find",
    "open_attester",
]

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
RTMR3: Final = Path("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")

_PROVIDERS: Final = {"tdx_guest": Tee.TDX, "sev_guest": Tee.SNP}
_BANK: Final = "sha384"
_MAX_BLOB: Final = 64 * 1024
_TRIES: Final = 5
_BUSY: Final = (errno.EBUSY, errno.EWOULDBLOCK, errno.EINTR)


class ReportFiles(Protocol):
    """Operations on one report directory, as the kernel provides them."""

    def make(self) -> str:
        """Make a directory and return its name."""
        ...

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """Write an attribute."""
        ...

    def read(self, name: str, attribute: str) -> bytes:
        """Read an attribute; an empty one where it has no value."""
        ...

    def remove(self, name: str) -> None:
        """Remove the directory."""
        ...


class ConfigFs:
    """The kernel's configfs at ``root``."""

    def __init__(self, root: Path = REPORTS) -> None:
        self._root = root

    def make(self) -> str:
        """See :class:`ReportFiles`."""
        name = f"fedlearn-{os.getpid()}-{secrets.token_hex(8)}"
        (self._root / name).mkdir(mode=0o700)
        return name

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """See :class:`ReportFiles`."""
        descriptor = os.open(self._root / name / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(descriptor, data) != len(data):
                raise AttesterError(f"{attribute} was not written as a whole")
        finally:
            os.close(descriptor)

    def read(self, name: str, attribute: str) -> bytes:
        """See :class:`ReportFiles`."""
        with (self._root / name / attribute).open("rb") as stream:
            return stream.read(_MAX_BLOB + 1)

    def remove(self, name: str) -> None:
        """See :class:`ReportFiles`."""
        (self._root / name).rmdir()


class TsmAttester:
    """Makes evidence through configfs-tsm; an :class:`~attestation.attesters.Attester`.

    ``directory``  private state (mode 0700): the log of what was measured into RTMR3
    ``files``      the report directories; ``ccel`` and ``rtmr3`` are the kernel's files

    :raises AttesterError: when there is no provider here, or one that is not known.
    """

    def __init__(
        self,
        directory: Path,
        *,
        files: ReportFiles | None = None,
        ccel: Path = CCEL,
        rtmr3: Path = RTMR3,
    ) -> None:
        self._files = files or ConfigFs()
        _, _, self._tee = self._report(bytes(64))
        base = _read_log(ccel) if self._tee is Tee.TDX else None
        self._register = rtmr3 if self._tee is Tee.TDX and rtmr3.exists() else None
        self._software = RuntimeRegister(base)
        self._log = None
        if self._register is not None:
            self._log = RuntimeLog(directory, RTMR_RUNTIME, _BANK, base)

    @property
    def tee(self) -> Tee:
        """:attr:`Tee.TDX` or :attr:`Tee.SNP`."""
        return self._tee

    def extend(self, claim: str, digest: bytes) -> None:
        """Measure ``digest`` (32 bytes) under ``claim`` into RTMR3, else into this process.

        :raises AttesterError: when the register cannot be extended, or its log does not
            explain it.
        """
        if self._register is None or self._log is None:
            self._software.extend(claim, digest)
            return
        try:
            measurement = Measurement(claim=claim, digest=digest)
        except ValueError as error:
            raise AttesterError(str(error)) from None
        with self._log.held():
            log = self._log.load(self._value(self._register))
            for other in measurements(log, RTMR_RUNTIME, _BANK):
                if other.name != measurement.name:
                    continue
                if other.digest == digest:
                    return
                raise AttesterError(
                    f"{claim} was already measured as {other.digest.hex()} in this domain",
                    hint="start a new confidential VM for another workload",
                )
            longer = record(log, measurement, RTMR_RUNTIME)
            self._log.store(longer)
            self._write(self._register, longer.events[-1].digests[_BANK])
            self._log.load(self._value(self._register))

    def collect(self, binding: Bound) -> Evidence:
        """Return evidence over ``binding`` and everything measured so far.

        :raises AttesterError: when no report can be made now.
        """
        if self._register is not None and self._log is not None:
            with self._log.held():
                quote, extra, tee = self._report(binding.report_data())
                log = self._log.complete(self._log.load(self._value(self._register)))
        else:
            quote, extra, tee = self._report(self._software.report_data(binding))
            log = self._software.log
        if tee is not self._tee:
            raise AttesterError(f"the provider changed to {tee.value}")
        return Evidence(
            tee=tee,
            quote=quote,
            event_log=log.to_bytes() if log.events else b"",
            endorsements=_certificates(extra) if tee is Tee.SNP else (),
        )

    def _report(self, report_data: bytes) -> tuple[bytes, bytes, Tee]:
        """Return one report, its auxiliary data and the kind of its provider."""
        for _ in range(_TRIES):
            try:
                name = self._files.make()
            except OSError as error:
                raise _unavailable(error) from error
            try:
                if (found := self._ask(name, report_data)) is not None:
                    return found
            except OSError as error:
                if error.errno not in _BUSY:
                    raise _unavailable(error) from error
            finally:
                self._files.remove(name)
        raise AttesterError("the report kept changing while it was read; try again")

    def _ask(self, name: str, report_data: bytes) -> tuple[bytes, bytes, Tee] | None:
        before = self._generation(name)
        self._files.write(name, "inblob", report_data)
        report = self._files.read(name, "outblob")
        provider = self._files.read(name, "provider").decode("ascii", "replace").strip()
        tee = _PROVIDERS.get(provider)
        if tee is None:
            raise AttesterError(f"configfs-tsm has provider {provider[:64]!r}, which is not known")
        extra = self._files.read(name, "auxblob") if tee is Tee.SNP else b""
        if self._generation(name) != before + 1:
            return None
        if not report or len(report) > _MAX_BLOB:
            raise AttesterError(f"a report of {len(report)} bytes")
        return report, extra, tee

    def _generation(self, name: str) -> int:
        text = self._files.read(name, "generation").strip()
        if not text.isdigit() or len(text) > 20:
            raise AttesterError(f"generation is {text[:32]!r}, not a number")
        return int(text)

    @staticmethod
    def _value(register: Path) -> bytes:
        try:
            with register.open("rb") as stream:
                value = stream.read(49)
        except OSError as error:
            raise AttesterError(f"{register} cannot be read: {error.strerror}") from error
        if len(value) != 48:
            raise AttesterError(f"{register} has {len(value)} bytes, not 48")
        return value

    @staticmethod
    def _write(register: Path, digest: bytes) -> None:
        try:
            descriptor = os.open(register, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, digest)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AttesterError(
                f"{register} cannot be extended: {error.strerror}",
                hint="it is writable by root, from Linux 6.16",
            ) from error


def _unavailable(error: OSError) -> AttesterError:
    return AttesterError(
        f"configfs-tsm cannot be used: {(error.strerror or 'unknown reason').lower()}",
        hint="it needs a TDX or SEV-SNP guest, Linux 6.7, configfs mounted, and root",
    )


def _read_log(path: Path) -> EventLog | None:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LOG_BYTES + 1)
    except OSError:
        return None  # The evidence then has registers without a log, which a verifier reports.
    try:
        return EventLog.parse(data)
    except EvidenceError as error:
        raise AttesterError(f"{path}: {error}") from error


def _certificates(data: bytes) -> tuple[bytes, ...]:
    if not data:
        return ()
    try:
        return parse_certificate_table(data)
    except EvidenceError as error:
        raise AttesterError(f"the host sent certificates that cannot be read: {error}") from error


def find(reports: Path = REPORTS) -> Found:
    """See :mod:`attestation.attesters.kinds`."""
    if not reports.is_dir():
        return Found(kind="tsm", present=False, why=f"{reports} is not there")
    if not os.access(reports, os.W_OK):
        return Found(kind="tsm", present=False, why=f"{reports} may not be written by this user")
    return Found(kind="tsm", present=True, why=f"{reports} is there")


def open_attester(options: Options) -> TsmAttester:
    """See :mod:`attestation.attesters.kinds`."""
    return TsmAttester(options.state / "tsm")
