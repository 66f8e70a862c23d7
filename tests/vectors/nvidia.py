"""GPUs, NVSwitches, reference manifests and OCSP answers under roots of our own, for the tests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from lxml import etree
from signxml import CanonicalizationMethod, DigestAlgorithm, SignatureMethod, XMLSigner
from signxml.algorithms import SignatureConstructionMethod

from attestation.evidence import Evidence, Tee
from attestation.trust import TrustAnchors, key_digest

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DRIVER, VBIOS = "550.90.07", "96.00.9F.00.01"
VBIOS_BYTES = bytes.fromhex("009f009601000000")
SWITCH_VBIOS = "96.10.6D.00.01"
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"


@dataclass
class Authority:
    """A key and its certificate. ``issuer`` is None for a root."""

    name: str
    issuer: Authority | None = None
    ca: bool = True
    serial: int = 0
    start: datetime = NOW - DAY * 365
    end: datetime = NOW + DAY * 3650
    extensions: Sequence[x509.ExtensionType] = ()
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    def __post_init__(self) -> None:
        above = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.name))
            .issuer_name(_name(above.name))
            .public_key(self.key.public_key())
            .serial_number(self.serial or x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
            .add_extension(x509.BasicConstraints(ca=self.ca, path_length=None), critical=True)
            .add_extension(_usage(self.ca), critical=True)
        )
        for extension in self.extensions:
            builder = builder.add_extension(extension, critical=False)
        self.certificate = builder.sign(above.key, hashes.SHA384())

    @property
    def chain(self) -> list[Authority]:
        return [self, *(self.issuer.chain if self.issuer else [])]

    @property
    def pem(self) -> bytes:
        return b"".join(item.certificate.public_bytes(Encoding.PEM) for item in self.chain)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


ROOT = Authority("Device Root")
IDENTITY = Authority("Identity", ROOT)
RIM_ROOT = Authority("RIM Root")
RIM_CA = Authority("RIM CA", RIM_ROOT)
RIM_SIGNER = Authority("RIM Signer", RIM_CA, ca=False)
TRUST = TrustAnchors(
    nvidia_root=key_digest(ROOT.key.public_key()),
    nvidia_rim_root=key_digest(RIM_ROOT.key.public_key()),
)


class Device:
    """A GPU or NVSwitch with certificates of its own; its PDI is eight bytes of its name's hash."""

    def __init__(self, name: str, *, switch: bool = False) -> None:
        self.switch = switch
        self.pdi = hashlib.sha256(name.encode()).digest()[:8]
        self.firmware_id = hashlib.sha384(b"firmware of " + name.encode()).digest()
        dice = x509.UnrecognizedExtension(
            x509.ObjectIdentifier("2.23.133.5.4.1"), b"\x30\x32\x04\x30" + self.firmware_id
        )
        self.identity = Authority(f"{name} BROM", IDENTITY)
        self.leaf = Authority(f"{name} FMC", self.identity, ca=False, extensions=(dice,))

    def opaque(self, links: Sequence[bytes]) -> dict[int, bytes]:
        """``links`` are PDIs: of the switch at each link of a GPU, of the GPUs of a switch."""
        if self.switch:
            listed = b"".join(links).ljust(64, b"\0") + bytes(64)
            return {6: SWITCH_VBIOS.encode(), 22: self.pdi, 26: listed}
        found = {3: DRIVER.encode() + b"\0", 6: VBIOS_BYTES, 11: b"\x55", 20: self.firmware_id}
        if links:
            found |= {21: b"\xaa", 22: b"".join(item[::-1] for item in links) + bytes(16)}
        return found

    def report(
        self,
        nonce: bytes,
        *,
        links: Sequence[bytes] = (),
        measurements: Mapping[int, bytes] | None = None,
        opaque: Mapping[int, bytes] | None = None,
    ) -> bytes:
        """``measurements`` and ``opaque`` replace single values of the usual report."""
        values = {index: golden(index) for index in range(1, 7)} | dict(measurements or {})
        blocks = b"".join(
            struct.pack("<BBHBH", index, 1, len(value) + 3, 0, len(value)) + value
            for index, value in values.items()
        )
        listed = b"".join(
            struct.pack("<HH", kind, len(value)) + value
            for kind, value in (self.opaque(links) | dict(opaque or {})).items()
        )
        data = b"\x11\xe0\x01\xff" + nonce + b"\0" + b"\x11\x60\0\0"
        data += bytes([len(values)]) + len(blocks).to_bytes(3, "little") + blocks
        data += bytes(32) + struct.pack("<H", len(listed)) + listed
        r, s = decode_dss_signature(self.leaf.key.sign(data, ec.ECDSA(hashes.SHA384())))
        return data + r.to_bytes(48, "big") + s.to_bytes(48, "big")

    def evidence(self, nonce: bytes, *endorsements: bytes, links: Sequence[bytes] = ()) -> Evidence:
        return Evidence(
            tee=Tee.NVIDIA,
            quote=self.report(nonce, links=links),
            endorsements=(self.leaf.pem, *endorsements),
        )


def golden(index: int) -> bytes:
    """The value of a measurement that the usual report has, by SPDM index."""
    return hashlib.sha384(b"measurement %d" % index).digest()


def resource(at: int, *values: bytes, **changed: str) -> str:
    """An active ``Resource`` at RIM index ``at``; ``changed`` replaces attributes."""
    attributes = {
        "type": "Measurement",
        "index": str(at),
        "active": "True",
        "alternatives": str(len(values)),
        "size": "48",
        "name": f"Measurement_{at}",
    } | changed
    hashed = "".join(f' h:Hash{number}="{value.hex()}"' for number, value in enumerate(values))
    return (
        f"<Resource {' '.join(f'{key}={value!r}' for key, value in attributes.items())}{hashed}/>"
    )


def tag(
    version: str, resources: Sequence[str], *, edition: str = "GPU", product: str = "GH100"
) -> str:
    """An unsigned SWID tag."""
    return (
        f'<SoftwareIdentity xmlns="{SWID}" xmlns:h="{SHA384}" name="{product}">\n'
        f'<Meta colloquialVersion="{version}" edition="{edition}" product="{product}"/>\n'
        f"<Payload>\n{''.join(resources)}\n</Payload>\n</SoftwareIdentity>"
    )


DRIVER_RESOURCES = (
    resource(0, bytes(48), active="False"),
    resource(1, golden(2)),
    resource(2, bytes(48), golden(3)),
)
VBIOS_RESOURCES = (resource(3, golden(4)), resource(4, golden(5)))


def sign(
    text: str,
    signer: Authority = RIM_SIGNER,
    *,
    digest: DigestAlgorithm = DigestAlgorithm.SHA384,
    method: SignatureMethod = SignatureMethod.ECDSA_SHA384,
) -> bytes:
    """A RIM: the tag with an enveloped signature of the shape that NVIDIA's have."""
    made = XMLSigner(
        method=SignatureConstructionMethod.enveloped,
        signature_algorithm=method,
        digest_algorithm=digest,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    ).sign(
        etree.fromstring(text),
        key=signer.key,
        cert=[item.certificate for item in signer.chain],
        always_add_key_value=False,
    )
    return bytes(etree.tostring(made))


def rims() -> tuple[bytes, bytes]:
    """The RIMs of driver and VBIOS that the usual report matches."""
    return sign(tag(DRIVER, DRIVER_RESOURCES)), sign(tag(VBIOS, VBIOS_RESOURCES))


def switch_rim() -> bytes:
    """The RIM of an NVSwitch, which the usual report of one matches."""
    return sign(tag(SWITCH_VBIOS, VBIOS_RESOURCES, edition="SWITCH", product="LS10"))


def answer(
    subject: Authority,
    *,
    responder: Authority | None = None,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    start: datetime = NOW - timedelta(hours=1),
    end: datetime | None = NOW + timedelta(hours=23),
    forged: bool = False,
) -> bytes:
    """An OCSP answer about ``subject`` by its issuer, or by ``responder``.

    A forged one is signed by somebody of the same name.
    """
    above = subject.issuer
    assert above is not None
    by = responder or above
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=subject.certificate,
        issuer=above.certificate,
        algorithm=hashes.SHA384(),
        cert_status=status,
        this_update=start,
        next_update=end,
        revocation_time=start if revoked else None,
        revocation_reason=x509.ReasonFlags.key_compromise if revoked else None,
    )
    encoding, signer = ocsp.OCSPResponderEncoding.HASH, by
    if forged:
        encoding, signer = ocsp.OCSPResponderEncoding.NAME, Authority(by.name)
    builder = builder.responder_id(encoding, signer.certificate)
    if responder is not None:
        builder = builder.certificates([responder.certificate])
    made = builder.sign(signer.key, hashes.SHA384())
    return made.public_bytes(Encoding.DER)


def answers(*devices: Device) -> tuple[bytes, ...]:
    """Good answers about everything but roots and leaves of devices."""
    subjects = [IDENTITY, RIM_CA, RIM_SIGNER, *(device.identity for device in devices)]
    return tuple(answer(subject) for subject in subjects)


def machine(gpus: int = 8, switches: int = 4) -> tuple[list[Device], list[Device]]:
    """The GPUs and NVSwitches of a machine in Protected PCIe mode."""
    return (
        [Device(f"GPU {number}") for number in range(gpus)],
        [Device(f"SWITCH {number}", switch=True) for number in range(switches)],
    )
