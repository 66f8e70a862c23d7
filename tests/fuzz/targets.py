"""What reads bytes from outside, each as one function with inputs that it accepts.

A target may raise errors of our own and nothing else. ``fuzz.py`` runs them under coverage
guidance; ``tests/attestation/test_fuzz_targets.py`` checks in CI that each still does what it
states here.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import ecdsa
from attestation.decoded import decode_file
from attestation.documents.formats import to_evidence
from attestation.endorsements.chains import split_certificates
from attestation.endorsements.collateral import describe
from attestation.endorsements.nvidia_rim import Rim, read_label
from attestation.endorsements.ocsp import OcspAnswer, check_not_revoked
from attestation.endorsements.offline import Input, gather
from attestation.errors import AttestationError
from attestation.evidence import Evidence, Tee
from attestation.policy import ear
from attestation.policy.parse import parse_policy
from attestation.policy.result import AttestationResult, Finding, Tier
from attestation.quotes.nvidia import NvidiaReport
from attestation.quotes.tpm_keys import PublicArea
from attestation.tpm.credential import TpmIdentity
from attestation.verifiers import verify
from fedlearn.app import message
from fedlearn.compression.codec import decode, encode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import FedlearnError
from fedlearn.identity.join import JoinToken
from fedlearn.job.assignment import Assignment
from fedlearn.sealing.header import PREFIX, Header, read_prefix
from fedlearn.update import arrays as update
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import keys, nvidia
from tests.vectors.amd import Amd
from tests.vectors.cases import BEFORE, Subject, binding, subjects

__all__ = ["OURS", "TARGETS", "Target"]

OURS = (AttestationError, FedlearnError)
"""The only errors that bytes from outside may cause."""

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/vectors/data"
SUBJECTS = {subject.name: subject for subject in subjects()}
KEY = keys.ec_key("a key of the fuzzer")
ORDER_KEY = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, kw_only=True)
class Target:
    """``read`` takes any bytes; it returns, or raises one of :data:`OURS`.

    ``seeds`` are inputs that it accepts. ``most`` bounds what the fuzzer makes, in bytes.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    most: int = 64 * 1024


def _quote(*names: str) -> Target:
    """Verify a quote of one kind, up to and including its claims."""
    chosen = [SUBJECTS[name] for name in names]
    bound = binding()

    def read(data: bytes) -> None:
        _verify(chosen, Evidence(tee=chosen[0].tee, quote=data))

    return Target(read=read, seeds=tuple(subject.make(bound).quote for subject in chosen))


def _verify(chosen: Iterable[Subject], evidence: Evidence) -> None:
    """Verify under what each subject trusts; return when one accepts."""
    refused: Exception | None = None
    for subject in chosen:
        try:
            verify(evidence, binding=binding(), trust=subject.trust, now=keys.AT)
        except OURS as error:
            refused = error
        else:
            return
    if refused is not None:
        raise refused


def _log(data: bytes) -> None:
    for name in ("tdx-v4", "tpm", "snp-genoa-v3-vcek"):
        subject = SUBJECTS[name]
        with contextlib.suppress(*OURS):
            _verify([subject], Evidence(tee=subject.tee, quote=QUOTES[name], event_log=data))
    decode_file(data, "event-log")


QUOTES = {name: subject.make(binding()).quote for name, subject in SUBJECTS.items()}


def _evidence(data: bytes) -> None:
    evidence = Evidence.from_bytes(data)
    _verify((item for item in SUBJECTS.values() if item.tee is evidence.tee), evidence)


def _file(data: bytes) -> None:
    to_evidence(data)
    decode_file(data)


def _endorsement(data: bytes) -> None:
    for name in ("snp_milan_vcek_report.bin", "tpm_ecdsa_quote.bin"):
        parsed, trust = gather(
            Input(name="evidence", data=(DATA / name).read_bytes()),
            endorsements=(Input(name="endorsement", data=data),),
        )
        with contextlib.suppress(*OURS):
            verify(parsed, binding=None, trust=trust, now=keys.AT)


def _policy(data: bytes) -> None:
    policy = parse_policy(data)
    assert len(policy.digest) == 32


def _ear(data: bytes) -> None:
    """Read bytes as a token, and as the claims of one that is signed."""
    with contextlib.suppress(*OURS):
        ear.read(data, key=KEY.public_key(), now=keys.AT)
    head = base64.urlsafe_b64encode(b'{"alg":"ES256","typ":"eat+jwt"}').rstrip(b"=")
    signed = head + b"." + base64.urlsafe_b64encode(data).rstrip(b"=")
    signature = base64.urlsafe_b64encode(ecdsa.sign(KEY, signed)).rstrip(b"=")
    ear.read(signed + b"." + signature, key=KEY.public_key(), now=keys.AT)


def _claims() -> bytes:
    result = AttestationResult(
        status=Tier.AFFIRMING,
        tee="tpm",
        findings=(Finding(claim="app", tier=Tier.AFFIRMING, expected="a", actual="a"),),
        policy=bytes(32),
        key_thumbprint=bytes(32),
        expires=keys.AT + timedelta(minutes=5),
    )
    payload = ear.issue(result, key=KEY, issued=keys.AT).split(".")[1]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))


def _header(data: bytes) -> None:
    with contextlib.suppress(*OURS):
        read_prefix(data)
    Header.from_bytes(data)


def _assignment(data: bytes) -> None:
    signed = b"fedlearn-assignment/1\0" + data
    signature = KEY.sign(signed, ec.ECDSA(hashes.SHA256()))
    Assignment.verify(data, signature, order_key=ORDER_KEY, site="north", now=keys.AT)


ASSIGNMENT = Assignment(
    id="j-north-1",
    job="j",
    site="north",
    spec="{}",
    bundle=bytes(32),
    policy="version = 1",
    workload=bytes(32),
    issued=BEFORE,
    expires=keys.END,
)

TOKEN = JoinToken(address="c.example:9443", site="north", ca_pin=bytes(32), secret=bytes(32))


def _seed(name: str) -> bytes:
    return (DATA / name).read_bytes()


def _sealed_headers() -> tuple[bytes, ...]:
    files = [path.read_bytes() for path in (ROOT / "tests/vectors/sealed").glob("*.flsw")]
    return tuple(data[PREFIX.size :][: read_prefix(data[: PREFIX.size])[1]] for data in files)


def _identity() -> bytes:
    area = PublicArea.parse(SyntheticTpm(key=keys.ec_key("tpm ak")).area)
    return TpmIdentity(ek=area, ak=area, ek_certificate=b"x").to_bytes()


def _head(*, failed: bool = False) -> bytes:
    failure = message.Failure(code=2, reason="it broke") if failed else None
    head = message.Head(
        id="a1", run=1, sender=2, receiver=1, created=1.5, ttl=60, kind="train", failure=failure
    )
    return head.to_bytes() if failed else head.with_parts(2).to_bytes()


def _records() -> bytes:
    arrays = [["w", "float32", [2, 3], "numpy.ndarray", 0]]
    config = {"a": {"part": 1}, "b": [True, False], "c": ["x", "y"], "d": -1.5e9}
    records = [("arrays", arrays), ("metrics", {"loss": 0.5, "n": [1, 2]}), ("config", config)]
    return message.write_content(
        [message.Record(f"my {kind}", kind, values) for kind, values in records]
    )


def _content(data: bytes) -> None:
    message.write_content(message.read_content(data, 2))


def _gpu(data: bytes) -> None:
    NvidiaReport.parse(data)
    verify(
        Evidence(tee=Tee.NVIDIA, quote=data),
        binding=None,
        trust=SUBJECTS["tdx-v4"].trust,
        now=keys.AT,
    )


def _rim(data: bytes) -> None:
    """Read a RIM, and verify it as one that a GPU's report asks for."""
    with contextlib.suppress(*OURS):
        read_label(data)
    Rim.verify(data, root=nvidia.TRUST.nvidia_rim_root, now=nvidia.NOW)


def _ocsp(data: bytes) -> None:
    """Read an OCSP answer, and judge one certificate by it."""
    check_not_revoked(RIM_CHAIN, OcspAnswer.parse(data), now=nvidia.NOW, step="fuzz")


RIM_CHAIN = split_certificates(nvidia.RIM_CA.pem, "chain")


def _gpu_report() -> bytes:
    block = bytes((1, 1, 51, 0, 0, 48, 0)) + bytes(48)
    record = len(block).to_bytes(3, "little") + block
    return (
        bytes.fromhex("11e001ff")
        + bytes(33)
        + bytes.fromhex("1160")
        + bytes(2)
        + b"\1"
        + record
        + bytes(32)
        + (8).to_bytes(2, "little")
        + b"\3\0\4\0"
        + b"550\0"
        + bytes(96)
    )


MODEL: dict[str, update.Array] = {
    "weight": np.linspace(-1, 1, 100, dtype=np.float32),
    "count": np.array(3),
}
COMPRESSIONS = [
    CompressionSpec(update=kind, fraction=fraction)
    for kind, fraction in (
        ("bf16", None),
        ("fp16", None),
        ("int8", None),
        ("topk", 0.01),
        ("topk", 0.5),
    )
]


def _encoded(spec: CompressionSpec) -> bytes:
    trained = {"weight": MODEL["weight"] * np.float32(1.5), "count": np.array(4)}
    return update.encode(encode(trained, MODEL, spec).arrays)


def _compressed(data: bytes) -> None:
    parts = update.decode(data)
    for spec in COMPRESSIONS:
        with contextlib.suppress(*OURS):
            found = decode(parts, MODEL, spec)
            assert np.isfinite(found["weight"]).all()


TARGETS: dict[str, Target] = {
    "compressed": Target(read=_compressed, seeds=tuple(map(_encoded, COMPRESSIONS))),
    "tdx": _quote("tdx-v4", "tdx-v5"),
    "sgx": _quote("sgx-v3"),
    "snp": _quote(*(name for name in SUBJECTS if name.startswith("snp"))),
    "tpm": _quote("tpm"),
    "azure": _quote("azure-snp", "azure-tdx"),
    "sample": _quote("sample"),
    "nvidia": Target(read=_gpu, seeds=(_gpu_report(),)),
    "nvidia-rim": Target(read=_rim, seeds=nvidia.rims()),
    "ocsp": Target(read=_ocsp, seeds=(nvidia.answer(nvidia.RIM_CA),)),
    "event-log": Target(read=_log, seeds=(_seed("ccel.bin"), _seed("tpm_log.bin"))),
    "evidence": Target(
        read=_evidence,
        seeds=tuple(subject.make(binding()).to_bytes() for subject in SUBJECTS.values()),
    ),
    "file": Target(
        read=_file,
        seeds=(
            _seed("snp_genoa_vcek_report.bin"),
            _seed("snp_milan_v2_report.bin").hex().encode(),
            base64.b64encode(_seed("tdx_v4_quote.bin")),
            _seed("azure_tdx.json"),
            _seed("tpm_rsassa_quote.bin"),
        ),
    ),
    "collateral": Target(
        read=lambda data: describe(data, path="file"),
        seeds=(
            _seed("tdx_collateral.json"),
            _seed("snp_milan_vcek.der"),
            _seed("snp_milan_ask_ark.pem"),
            Amd().crl(),
            nvidia.rims()[0],
            nvidia.answer(nvidia.RIM_CA),
        ),
    ),
    "endorsement": Target(
        read=_endorsement,
        seeds=(
            _seed("snp_milan_vcek.der"),
            _seed("snp_milan_ask_ark.pem"),
            _seed("tdx_collateral.json"),
            Amd().crl(),
            ORDER_KEY,
        ),
    ),
    "policy": Target(
        read=_policy,
        seeds=(
            (ROOT / "docs/reference/policy.md")
            .read_bytes()
            .split(b'```toml title="policy.toml"\n')[1]
            .split(b"```")[0],
            b'version = 1\naccept = ["tdx"]\n[coordinator]\naccept = ["snp"]\n[tdx]\n',
        ),
    ),
    "ear": Target(read=_ear, seeds=(_claims(),)),
    "sealed-header": Target(read=_header, seeds=_sealed_headers()),
    "join-token": Target(
        read=lambda data: JoinToken.parse(data.decode("utf-8", "surrogateescape")),
        seeds=(TOKEN.encode().encode(),),
    ),
    "assignment": Target(read=_assignment, seeds=(ASSIGNMENT.to_bytes(),)),
    "message-head": Target(read=message.Head.from_bytes, seeds=(_head(), _head(failed=True))),
    "message-content": Target(read=_content, seeds=(_records(),)),
    "tpm-identity": Target(read=TpmIdentity.from_bytes, seeds=(_identity(),)),
}
