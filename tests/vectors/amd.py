"""A chip of AMD's with a root of our own: ARK, ASK, ASVK, VCEK, VLEK and signed reports."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors import keys

_OID = "1.3.6.1.4.1.3704.1"
_CPUID = {"Milan": (0x19, 0x01, 0x01), "Genoa": (0x19, 0x11, 0x01), "Turin": (0x1A, 0x02, 0x01)}
_NAMES = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_ISSUED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_NEXT = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
TCB = {"bootloader": 4, "tee": 1, "snp": 22, "microcode": 211, "fmc": 2}
_POLICY = 1 << 17 | 1 << 16


@dataclass(frozen=True, kw_only=True)
class Amd:
    """A product under a root that ``seed`` makes; another seed is a look-alike."""

    product: str = "Milan"
    seed: str = "amd"
    end: dt.datetime = keys.END

    @property
    def root_key(self) -> bytes:
        """The SHA-256 of the ARK's SubjectPublicKeyInfo."""
        public = self._rsa("ark").public_key()
        return hashlib.sha256(
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()

    @property
    def chip_id(self) -> bytes:
        """64 bytes, on Turin 8."""
        return keys.stream(f"{self.product}/chip", 8 if self.product == "Turin" else 64)

    def _rsa(self, name: str) -> rsa.RSAPrivateKey:
        return keys.rsa_key(f"{self.seed}/{name}")

    def authorities(self, middle: str = "ask") -> bytes:
        """Return ASK or ASVK and the ARK, in PEM."""
        title = "SEV" if middle == "ask" else "SEV-VLEK"
        ark = self._name(f"ARK-{self.product}")
        chain = []
        for name, subject, serial in (
            (middle, self._name(f"{title}-{self.product}"), 2 if middle == "ask" else 3),
            ("ark", ark, 1),
        ):
            built = keys.builder(
                subject,
                ark,
                self._rsa(name).public_key(),
                serial=serial,
                authority=True,
                end=self.end,
            )
            chain.append(keys.sign_pss(built, self._rsa("ark")))
        return keys.pem(*chain)

    def leaf(self, kind: str = "vcek", tcb: dict[str, int] | None = None) -> bytes:
        """Return a VCEK or VLEK in DER."""
        title, middle = ("SEV", "ask") if kind == "vcek" else ("SEV-VLEK", "asvk")
        public = keys.ec_key(f"{self.seed}/{self.product}/{kind}", "P-384").public_key()
        built = keys.builder(
            self._name(f"SEV-{kind.upper()}"),
            self._name(f"{title}-{self.product}"),
            public,
            serial=7,
            authority=False,
            end=self.end,
        )
        extensions = {"1": keys.integer(0), "2": keys.der(0x16, self.product.encode())}
        for name, version in (tcb or TCB).items():
            if name != "fmc" or self.product == "Turin":
                extensions[_NAMES[name]] = keys.integer(version)
        if kind == "vcek":
            extensions["4"] = self.chip_id
        else:
            extensions["5"] = keys.der(0x16, b"CN=test.cloud.example")
        for suffix, value in extensions.items():
            item = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{_OID}.{suffix}"), value)
            built = built.add_extension(item, critical=False)
        return keys.sign_pss(built, self._rsa(middle))

    def crl(
        self,
        revoked: tuple[int, ...] = (),
        issued: dt.datetime = _ISSUED,
        following: dt.datetime = _NEXT,
    ) -> bytes:
        """Return the ARK's revocation list; its salt is random, so it is made for each test."""
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name(f"ARK-{self.product}"))
            .last_update(issued)
            .next_update(following)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued)
            built = built.add_revoked_certificate(entry.build())
        scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        made = built.sign(self._rsa("ark"), hashes.SHA384(), rsa_padding=scheme)
        return made.public_bytes(Encoding.DER)

    def report(
        self,
        version: int = 3,
        *,
        kind: str = "vcek",
        report_data: bytes = bytes(64),
        policy: int = _POLICY,
        vmpl: int = 0,
        host_data: bytes = bytes(32),
        tcb: dict[str, int] | None = None,
        masked: bool = False,
        author: bool = False,
        platform: int = 1,
        launch: dict[str, int] | None = None,
        committed: dict[str, int] | None = None,
        mitigations: tuple[int, int] = (0, 0),
    ) -> bytes:
        """Return a signed report; ``launch`` and ``committed`` are TCBs other than ``tcb``."""
        body = bytearray(0x2A0)
        value = self.tcb_bytes(tcb or TCB)
        info = (1 if kind == "vlek" else 0) << 2 | int(author)

        def put(offset: int, data: bytes) -> None:
            body[offset : offset + len(data)] = data

        put(0x00, struct.pack("<IIQ", version, 1, policy))
        put(0x30, struct.pack("<II", vmpl, 1) + value + struct.pack("<QII", platform, info, 0))
        put(0x50, report_data)
        put(0x90, keys.stream("launch measurement", 48) + host_data)
        if author:
            put(0xE0, keys.stream("id key", 48) + keys.stream("author key", 48))
        put(0x140, keys.stream("report id", 32))
        put(0x180, value)
        if version >= 3:
            put(0x188, bytes(_CPUID[self.product]))
        if not masked:
            put(0x1A0, self.chip_id)
        put(0x1E0, self.tcb_bytes(committed) if committed else value)
        put(0x1F0, self.tcb_bytes(launch) if launch else value)
        put(0x1F8, struct.pack("<QQ", *mitigations))
        key = keys.ec_key(f"{self.seed}/{self.product}/{kind}", "P-384")
        r, s = keys.sign_raw(key, bytes(body))
        return bytes(body) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)

    def tcb_bytes(self, tcb: dict[str, int]) -> bytes:
        """Return a TCB_VERSION in this product's layout."""
        if self.product == "Turin":
            order: tuple[Any, ...] = (
                "fmc",
                "bootloader",
                "tee",
                "snp",
                None,
                None,
                None,
                "microcode",
            )
        else:
            order = ("bootloader", "tee", None, None, None, None, "snp", "microcode")
        return bytes(tcb[name] if name else 0 for name in order)

    def _name(self, common: str) -> x509.Name:
        return keys.name(common, "Advanced Micro Devices")
