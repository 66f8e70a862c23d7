"""A platform of Intel's with a root of our own: PCK chain, quotes, collateral, event log."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record
from tests.vectors import keys

FMSPC = bytes.fromhex("f0f1f2000000")
PPID = keys.stream("ppid", 16)
_OID = "1.2.840.113741.1.13.1"
_QE_SIGNER = keys.stream("mrsigner of the QE", 32)
_CPU_SVN = bytes((3,) * 8 + (0,) * 8)
_TEE_TCB_SVN = bytes((5, 1, 2) + (0,) * 13)
_ISSUED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_NEXT = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
_SEPT_VE_DISABLE = 1 << 28
APP = hashlib.sha256(b"an application bundle").digest()
JOB = hashlib.sha256(b"a job").digest()


@dataclass(frozen=True, kw_only=True)
class Intel:
    """``seed`` makes another root with the same names: a look-alike."""

    seed: str = "intel"
    end: dt.datetime = keys.END
    chain: tuple[bytes, ...] = field(init=False)
    signer_chain: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chain", self._chain())
        object.__setattr__(self, "signer_chain", (self._signer(), self.chain[-1]))

    @property
    def root_key(self) -> bytes:
        """The SHA-256 of the root's SubjectPublicKeyInfo."""
        public = self._key("root").public_key()
        return hashlib.sha256(
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        return keys.ec_key(f"{self.seed}/{name}")

    def _certificate(
        self,
        name: str,
        issuer: str,
        *,
        serial: int,
        ca: bool,
        extra: Iterable[x509.ExtensionType] = (),
    ) -> bytes:
        titles = {
            "root": "Intel SGX Root CA",
            "ca": "Intel SGX PCK Platform CA",
            "pck": "Intel SGX PCK Certificate",
            "tcb": "Intel SGX TCB Signing",
        }
        built = keys.builder(
            keys.name(titles[name], "Intel Corporation"),
            keys.name(titles[issuer], "Intel Corporation"),
            self._key(name).public_key(),
            serial=serial,
            authority=ca,
            end=self.end,
        )
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            self._key(issuer).public_key()
        )
        built = built.add_extension(authority, critical=False)
        for item in extra:
            built = built.add_extension(item, critical=False)
        return keys.sign_ec(built, self._key(issuer))

    def _chain(self) -> tuple[bytes, ...]:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_OID), _sgx_extension())
        return (
            self._certificate("pck", "ca", serial=3, ca=False, extra=[extension]),
            self._certificate("ca", "root", serial=2, ca=True),
            self._certificate("root", "root", serial=1, ca=True),
        )

    def _signer(self) -> bytes:
        return self._certificate("tcb", "root", serial=4, ca=False)

    def quote(
        self,
        version: int = 4,
        *,
        report_data: bytes = bytes(64),
        rtmrs: tuple[bytes, ...] = (bytes(48),) * 4,
        attributes: int = _SEPT_VE_DISABLE,
        kind: int = 3,
        mrtd: bytes = b"",
        tee_tcb_svn: bytes = _TEE_TCB_SVN,
        tee_tcb_svn_2: bytes = b"",
        service_td: bytes = bytes(48),
    ) -> bytes:
        """Return a TDX quote; ``kind`` is the body type of version 5.

        ``tee_tcb_svn_2`` and ``service_td`` stand in a body of TD 1.5.
        """
        body = tee_tcb_svn + keys.stream("mrseam", 48) + bytes(48 + 8)
        body += struct.pack("<QQ", attributes, 0x602E7) + (mrtd or keys.stream("mrtd", 48))
        body += keys.stream("mrconfigid", 48) + bytes(96) + b"".join(rtmrs) + report_data
        if version == 5:
            if kind == 3:
                body += (tee_tcb_svn_2 or tee_tcb_svn) + service_td
            body = struct.pack("<HI", kind, len(body)) + body
        return self._wrap(_header(version, 0x81) + body, version)

    def sgx_quote(self, *, report_data: bytes = bytes(64), attributes: int = 5) -> bytes:
        """Return an SGX quote of version 3."""
        report = _enclave(
            attributes, keys.stream("mrenclave", 32), keys.stream("mrsigner", 32), 7, 3, report_data
        )
        return self._wrap(_header(3, 0) + report, 3)

    def _wrap(self, signed: bytes, version: int) -> bytes:
        key = self._key("attestation key")
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        auth = bytes(range(32))
        digest = hashlib.sha256(point + auth).digest() + bytes(32)
        qe = _enclave(
            0x11,
            keys.stream("mrenclave of the QE", 32),
            _QE_SIGNER,
            2 if version > 3 else 1,
            6,
            digest,
        )
        chain = keys.pem(*self.chain) + b"\0"
        inner = qe + keys.sign_p256(self._key("pck"), qe) + struct.pack("<H", len(auth)) + auth
        inner += struct.pack("<HI", 5, len(chain)) + chain
        if version > 3:
            inner = struct.pack("<HI", 6, len(inner)) + inner
        data = keys.sign_p256(key, signed) + point + inner
        return signed + struct.pack("<I", len(data)) + data

    def collateral(
        self,
        tee: str = "TDX",
        *,
        status: str = "UpToDate",
        advisories: tuple[str, ...] = (),
        evaluation: int = 18,
        issued: dt.datetime = _ISSUED,
        following: dt.datetime = _NEXT,
        fmspc: bytes = FMSPC,
        revoked: tuple[int, ...] = (),
        least: int = 2,
    ) -> bytes:
        """Return a document of collateral; ``revoked`` are serial numbers of PCKs."""
        stamp = {"issueDate": _rfc3339(issued), "nextUpdate": _rfc3339(following)}
        level: dict[str, Any] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": least if n < 8 else 0} for n in range(16)],
                "pcesvn": 11,
            },
            "tcbDate": "2025-11-01T00:00:00Z",
            "tcbStatus": status,
            "advisoryIDs": list(advisories),
        }
        info: dict[str, Any] = {
            "id": tee,
            "version": 3,
            **stamp,
            "fmspc": fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": evaluation,
        }
        if tee == "TDX":
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
            versions = [
                {"tcb": {"isvsvn": 4}, "tcbDate": "2025-11-01T00:00:00Z", "tcbStatus": "UpToDate"}
            ]
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": versions}]
            level["tcb"]["tdxtcbcomponents"] = [{"svn": n} for n in (5, 0, 2, *(0,) * 13)]
        info["tcbLevels"] = [level]
        identity = {
            "id": "TD_QE" if tee == "TDX" else "QE",
            "version": 2,
            **stamp,
            "tcbEvaluationDataNumber": evaluation,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": _QE_SIGNER.hex().upper(),
            "isvprodid": 2 if tee == "TDX" else 1,
            "tcbLevels": [
                {"tcb": {"isvsvn": 4}, "tcbDate": "2025-11-01T00:00:00Z", "tcbStatus": "UpToDate"}
            ],
        }
        signer = keys.pem(*self.signer_chain).decode()
        tcb_text, identity_text = _compact(info), _compact(identity)
        document = {
            "pck_crl_issuer_chain": keys.pem(*self.chain[1:]).decode(),
            "root_ca_crl": self._crl("root", (), issued, following).hex(),
            "pck_crl": self._crl("ca", revoked, issued, following).hex(),
            "tcb_info_issuer_chain": signer,
            "tcb_info": tcb_text,
            "tcb_info_signature": keys.sign_p256(self._key("tcb"), tcb_text.encode()).hex(),
            "qe_identity_issuer_chain": signer,
            "qe_identity": identity_text,
            "qe_identity_signature": keys.sign_p256(self._key("tcb"), identity_text.encode()).hex(),
        }
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    def _crl(
        self,
        issuer: str,
        revoked: tuple[int, ...],
        issued: dt.datetime,
        following: dt.datetime,
    ) -> bytes:
        subject = x509.load_der_x509_certificate(self.chain[1 if issuer == "ca" else 2]).subject
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            self._key(issuer).public_key()
        )
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(subject)
            .last_update(issued)
            .next_update(following)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(authority, critical=False)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued)
            built = built.add_revoked_certificate(entry.build())
        made = built.sign(self._key(issuer), hashes.SHA256(), ecdsa_deterministic=True)
        return made.public_bytes(Encoding.DER)


def event_log() -> tuple[bytes, tuple[bytes, ...]]:
    """Return a CCEL with boot events, an agent's events and our measurements, and its RTMRs."""
    log = EventLog.create(("sha384",), index=1)
    for index, kind, label, content in (
        (1, 0x8000000A, b")Fv(test)", b"firmware"),
        (2, 0x80000003, b"an image's device path", b"kernel"),
        (3, 0x00000006, b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0", b"console=ttyS0"),
        (3, 0x00000006, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0", b"initrd"),
    ):
        log = log.append(index, kind, {"sha384": hashlib.sha384(content).digest()}, label)
    for action in (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"):
        log = log.append(2, 0x80000007, {"sha384": hashlib.sha384(action).digest()}, action)
    for claim, digest in (("app", APP), ("job", JOB)):
        log = record(log, Measurement(claim=claim, digest=digest), 4)
    registers = log.replay("sha384", ccel=True)
    return log.to_bytes(), tuple(registers.get(index, bytes(48)) for index in range(1, 5))


def _header(version: int, tee: int) -> bytes:
    vendor = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
    return struct.pack("<HHIHH", version, 2, tee, 0, 0) + vendor + keys.stream("user data", 20)


def _enclave(
    attributes: int, enclave: bytes, signer: bytes, product: int, svn: int, data: bytes
) -> bytes:
    report = _CPU_SVN + bytes(4 + 28) + struct.pack("<QQ", attributes, 0xE7) + enclave + bytes(32)
    return report + signer + bytes(96) + struct.pack("<HH", product, svn) + bytes(60) + data


def _sgx_extension() -> bytes:
    def item(suffix: str, value: bytes) -> bytes:
        return keys.der(0x30, keys.oid(f"{_OID}.{suffix}"), value)

    levels = [item(f"2.{n + 1}", keys.integer(svn)) for n, svn in enumerate(_CPU_SVN)]
    levels += [item("2.17", keys.integer(11)), item("2.18", keys.der(0x04, _CPU_SVN))]
    return keys.der(
        0x30,
        item("1", keys.der(0x04, PPID)),
        item("2", keys.der(0x30, *levels)),
        item("3", keys.der(0x04, bytes(2))),
        item("4", keys.der(0x04, FMSPC)),
        item("5", keys.der(0x0A, b"\x01")),
        item("6", keys.der(0x04, keys.stream("platform instance", 16))),
        item("7", keys.der(0x30, *(item(f"7.{n}", keys.der(0x01, b"\xff")) for n in (1, 2, 3)))),
    )


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _rfc3339(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
