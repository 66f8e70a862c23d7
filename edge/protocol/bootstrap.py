"""The bootstrap document of a client: what it is started with. It contains no secret.

The client does not trust it: job, policy and code are measured and bound into its evidence, and
the coordinator behind ``ca_pin`` has to prove itself before anything is sent to it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from attestation.config import to_plain
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from edge.protocol.identity import SiteIdentity
from edge.protocol.workload import Workload
from fedlearn import config
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.filters import MOST_FILTERS, FilterSpec
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.spec import JobSpec, workload_digest

__all__ = ["MAX_BOOTSTRAP_BYTES", "Bootstrap", "ClientJob", "bootstrap_of"]

MAX_BOOTSTRAP_BYTES: Final = 128 * 1024 * 1024
"""Upper bound of an encoded document; the largest part is the app bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientJob:
    """What a client runs, parsed and hashed from the bytes themselves.

    ``digest``    of the job, 32 bytes (:meth:`fedlearn.job.spec.JobSpec.digest`)
    ``bundle``    SHA-256 of its code
    ``workload``  :func:`fedlearn.job.spec.workload_digest` of the two
    """

    spec: JobSpec
    policy: AppraisalPolicy
    digest: bytes
    bundle: bytes
    workload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What one client is started with.

    ``spec``    the job, as :meth:`fedlearn.job.spec.JobSpec.to_json` writes it
    ``policy``  its appraisal policy, TOML
    ``bundle``  its code
    ``data``    path of the data mount, as the client sees it
    ``state``   the attester's private directory
    ``sandbox`` which sandbox the site requires for the app: ``full`` or ``best-effort``
    ``app_logs`` where the site lets the app's output go: ``off``, ``sealed`` or ``insecure-plain``
    ``filters`` what the client does to every update before it leaves
    """

    site: str
    client: str
    spec: str
    policy: str
    bundle: bytes = field(repr=False)
    gate_address: str
    ca_pin: bytes
    data: str
    attester: AttesterSettings
    state: Path
    trust: TrustAnchors = field(default_factory=TrustAnchors)
    sandbox: str = "best-effort"
    app_logs: str = "off"
    filters: tuple[FilterSpec, ...] = ()

    def read(self) -> ClientJob:
        """Parse the job and its policy, and hash the code; a client does it once.

        :raises JobError: when the policy is not the one that the job names, or the job does not
            name this site.
        :raises PolicyError: when the policy is not one.
        """
        spec = JobSpec.from_json(self.spec)
        policy = parse_policy(self.policy.encode(), where="the job's policy")
        if policy.digest != spec.policy_digest:
            raise JobError("the policy that came with the job is not the one that the job names")
        if self.site not in spec.sites:
            raise JobError(f"job {spec.name} does not name the site {self.site}")
        digest, bundle = spec.digest(), hashlib.sha256(self.bundle).digest()
        return ClientJob(
            spec=spec,
            policy=policy,
            digest=digest,
            bundle=bundle,
            workload=workload_digest(digest, bundle),
        )

    def encode(self) -> bytes:
        """Return the document as JSON."""
        document = {
            "site": self.site,
            "client": self.client,
            "spec": self.spec,
            "policy": self.policy,
            "bundle": _text(self.bundle),
            "gate_address": self.gate_address,
            "ca_pin": _text(self.ca_pin),
            "data": self.data,
            "attester": _settings(self.attester),
            "state": str(self.state),
            "trust": _anchors_json(self.trust),
            "sandbox": self.sandbox,
            "app_logs": self.app_logs,
            "filters": [each.to_mapping() for each in self.filters],
        }
        return json.dumps(document).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return what :meth:`encode` wrote.

        :raises ConfigError: when it is not such a document.
        """
        if len(data) > MAX_BOOTSTRAP_BYTES:
            raise ConfigError(f"a bootstrap document has at most {MAX_BOOTSTRAP_BYTES} bytes")
        try:
            document: dict[str, Any] = json.loads(data)
            trust: Mapping[str, Any] = document["trust"]
            return cls(
                site=str(document["site"]),
                client=str(document["client"]),
                spec=str(document["spec"]),
                policy=str(document["policy"]),
                bundle=_bytes(document["bundle"]),
                gate_address=str(document["gate_address"]),
                ca_pin=_bytes(document["ca_pin"]),
                data=str(document["data"]),
                attester=config.read(AttesterSettings, document["attester"], where="bootstrap"),
                state=Path(str(document["state"])),
                trust=_anchors(trust),
                sandbox=str(document["sandbox"]),
                app_logs=str(document.get("app_logs", "off")),
                filters=_filters(document.get("filters", [])),
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            binascii.Error,
        ) as error:
            raise ConfigError(f"the bootstrap document is malformed: {error}") from None


def _settings(settings: AttesterSettings) -> dict[str, object]:
    return {key: value for key, value in to_plain(settings).items() if value not in ("", None)}


def _filters(document: object) -> tuple[FilterSpec, ...]:
    if not isinstance(document, list) or len(document) > MOST_FILTERS:
        raise ValueError(f"filters are a list of at most {MOST_FILTERS}")
    return tuple(config.read(FilterSpec, each, where="bootstrap") for each in document)


def _anchors_json(trust: TrustAnchors) -> dict[str, object]:
    """Return every field as JSON has it: a text, a list, or an object."""
    document: dict[str, object] = {}
    for item in dataclasses.fields(trust):
        value = getattr(trust, item.name)
        if isinstance(value, bytes):
            document[item.name] = _text(value)
        elif isinstance(value, Mapping):
            document[item.name] = {_text(key): _text(other) for key, other in value.items()}
        else:
            texts = list(map(_text, value))
            document[item.name] = sorted(texts) if isinstance(value, frozenset) else texts
    return document


def _anchors(document: Mapping[str, Any]) -> TrustAnchors:
    values: dict[str, Any] = {}
    pinned = TrustAnchors()
    for item in dataclasses.fields(TrustAnchors):
        written, kind = document[item.name], getattr(pinned, item.name)
        if isinstance(kind, bytes):
            values[item.name] = _bytes(written)
        elif isinstance(kind, Mapping):
            values[item.name] = {_bytes(key): _bytes(other) for key, other in written.items()}
        else:
            values[item.name] = type(kind)(map(_bytes, written))
    return TrustAnchors(**values)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("bytes are written in base64")
    return base64.b64decode(text, validate=True)


def bootstrap_of(
    workload: Workload,
    *,
    identity: SiteIdentity,
    attester: AttesterSettings,
    state: Path,
    trust: TrustAnchors,
    sandbox: str = "best-effort",
    app_logs: str = "off",
    filters: Sequence[FilterSpec] = (),
    data: str = "",
) -> Bootstrap:
    """Return the bootstrap document of a client of this site."""
    assignment = workload.assignment
    if attester.key is not None:
        attester = dataclasses.replace(attester, key=attester.key.resolve())
    return Bootstrap(
        site=identity.site,
        client=workload.client,
        spec=assignment.spec,
        policy=assignment.policy,
        bundle=workload.bundle,
        gate_address=identity.gate_address,
        ca_pin=identity.ca_pin,
        data=data or workload.data,
        attester=attester,
        state=state.resolve(),
        trust=trust,
        sandbox=sandbox,
        app_logs=app_logs,
        filters=tuple(filters),
    )
