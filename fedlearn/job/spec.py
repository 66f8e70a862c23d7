"""The specification of a job: read from a file, checked, and bound to evidence by its digest.

The digest (:meth:`JobSpec.digest`) is measured into every client's TEE before it attests and
is part of the binding of its evidence, so two parties that agree on it agree on the job. It
covers the meaning of the file: the digest of the policy and the owner's key are in it, paths are
not. :func:`workload_digest` adds the digest of the code.

The page is docs/reference/job.md.
"""

# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from attestation.config import (
    InconsistentValues,
    choice,
    dumps,
    each,
    hexadecimal,
    number,
    option,
    scalar,
    seq,
    table,
    text,
    to_plain,
    toml,
    whole,
)
from attestation.length_prefixed import pack
from fedlearn import config as reading
from fedlearn.compression.spec import CompressionSpec
from fedlearn.config import NAME
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.constraints.parts import (
    default_quorum,
    faults_of_cohort,
    faults_of_logs,
    faults_of_masks,
    faults_of_privacy,
    faults_of_root,
    faults_of_selection,
    faults_of_sites,
    faults_of_versions,
)
from fedlearn.job.constraints.robust_rules import too_few_updates
from fedlearn.job.owner_key import parse_owner_key, read_owner_key
from fedlearn.job.placement import LAUNCHERS, MAX_SITES, Placement
from fedlearn.job.run import RunName
from fedlearn.job.tables import (
    MAX_ROUNDS,
    OPTION,
    AggregationSpec,
    DataMount,
    EvaluateSpec,
    Resources,
    Scalar,
    StrategySpec,
)
from fedlearn.privacy.spec import PrivacySpec

if TYPE_CHECKING:
    from attestation.policy.model import AppraisalPolicy

__all__ = [
    "JobFiles",
    "JobSpec",
    "workload_digest",
]

MAX_JOB_BYTES: Final = 4 * 1024 * 1024
"""Upper bound of a specification as JSON."""

MAX_JOB_TOML_BYTES: Final = 2 * 1024 * 1024
"""Upper bound of a job's file, which a coordinator takes as it is."""

_FORMAT: Final = 1
_WORKLOAD_DOMAIN: Final = b"fedlearn-workload/1\0"
_DIGEST_BYTES: Final = 32
_ELSEWHERE: Final = "-"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A complete and consistent job. Make one with :meth:`load` or :meth:`from_toml`.

    ``name``           of the job; of an accepted job the id of its run, which is also the name
                       of its model and of its ledger entries (:mod:`fedlearn.job.run`)
    ``app``            folder or bundle of the Flower application, relative to the job's file
    ``rounds``         of training
    ``strategy``       how updates become one model
    ``aggregation``    what the app receives of the updates
    ``evaluate``       how the sites evaluate
    ``resources``      what one client asks of its site
    ``privacy``        the differential privacy; none by default
    ``compression``    the form in which updates travel; as they are by default
    ``data``           the data of each site, by its name; exactly one of the keys of a table
    ``config``         overrides of the application's run config
    ``sites``          the sites that take part, in the order that every aggregation uses
    ``placement``      how many of them, if not all (:mod:`fedlearn.job.placement`)
    ``quorum``         updates that a round needs; 0 in a file means all that take part, or those
                       of which an asynchronous strategy makes a version
    ``deadline_s``     seconds that a round may take
    ``stragglers``     at the deadline: ``drop`` late sites, or ``fail`` the job
    ``policy``         path of the appraisal policy, relative to the job's file
    ``policy_digest``  digest of that policy, 32 bytes (``AppraisalPolicy.digest``)
    ``owner_key``      ``x25519:`` and base64 of the key that opens the finished model, or empty
    ``app_logs``       ``sealed``: what the app writes at a site is sealed to the owner's key
                       (:mod:`fedlearn.sealing.app_log`), where the site accepts it
    ``launcher``       how sites start the client: ``any``, ``process`` or ``kubernetes``
    ``seed``           from which all randomness of the training is derived

    :raises InconsistentValues: from the constructor, for values that exclude each other.

    >>> source = '''
    ... name = "heart"
    ... app = "app"
    ... rounds = 3
    ... sites = ["north", "south"]
    ... policy = "policy.toml"
    ... '''
    >>> job = JobSpec.from_toml(source + f'policy_digest = "{bytes(32).hex()}"')
    >>> job.quorum, job.strategy.name, job.aggregation.updates
    (2, 'app', 'aggregated')
    >>> JobSpec.from_toml(source.replace("rounds = 3", "rounds = 0"), "job.toml")
    Traceback (most recent call last):
        ...
    fedlearn.errors.ConfigError: job.toml:4: rounds: must be a whole number from 1 to 10000, not 0
    """

    name: str = option(reading.name())
    app: str = option(text())
    rounds: int = option(whole(1, MAX_ROUNDS))
    sites: tuple[str, ...] = option(seq(reading.name(), least=1, most=MAX_SITES, unique=True))
    policy: str = option(text())
    policy_digest: bytes = option(hexadecimal(_DIGEST_BYTES), default=b"")
    quorum: int = option(whole(0, MAX_SITES), default=0)
    deadline_s: float = option(number(1, 7 * 86_400), default=600.0)
    stragglers: str = option(choice("drop", "fail"), default="drop")
    seed: int = option(whole(0, 2**63 - 1), default=0)
    owner_key: str = option(text(least=0), default="")
    app_logs: str = option(choice("off", "sealed"), default="off")
    launcher: str = option(choice("any", *LAUNCHERS), default="any")
    strategy: StrategySpec = option(table(StrategySpec), factory=StrategySpec)
    aggregation: AggregationSpec = option(table(AggregationSpec), factory=AggregationSpec)
    config: Mapping[str, Scalar] = option(
        each(scalar(), key=OPTION, most=200), factory=lambda: MappingProxyType({})
    )
    evaluate: EvaluateSpec = option(table(EvaluateSpec), factory=EvaluateSpec)
    resources: Resources = option(table(Resources), factory=Resources)
    placement: Placement = option(table(Placement), factory=Placement)
    privacy: PrivacySpec | None = option(table(PrivacySpec), default=None)
    compression: CompressionSpec = option(table(CompressionSpec), factory=CompressionSpec)
    data: Mapping[str, DataMount] = option(
        each(table(DataMount), key=NAME), factory=lambda: MappingProxyType({})
    )

    def __post_init__(self) -> None:
        faults = [
            *faults_of_sites(self.sites, self.data, self.placement, self.quorum),
            *faults_of_root(self.strategy, self.sites, self.placement),
            *faults_of_selection(self.strategy, private=self.privacy is not None),
            *faults_of_versions(self.strategy, self.sites, self.placement, self.quorum),
        ]
        if self.privacy is not None:
            faults += faults_of_privacy(
                self.privacy, self.strategy, self.aggregation, self.compression
            )
            quorum = self.quorum or self.placement.choose or len(self.sites)
            faults += faults_of_cohort(self.privacy, self.sites, self.placement, quorum)
        if self.aggregation.masked:
            faults += faults_of_masks(
                self.strategy,
                self.aggregation,
                self.compression,
                sites=self.placement.choose or len(self.sites),
                quorum=self.quorum,
                private=self.privacy is not None,
            )
        if self.app_logs == "sealed":
            faults += faults_of_logs(self.owner_key, private=self.privacy is not None)
        if faults:
            raise InconsistentValues(*faults)
        if self.quorum == 0:
            quorum = default_quorum(self.strategy, self.sites, self.placement)
            object.__setattr__(self, "quorum", quorum)

    def at(self, sites: Collection[str]) -> JobSpec:
        """Return the job that runs at exactly these of its sites.

        They keep the order in which they were listed; ``placement`` is empty.

        :raises ValueError: when they are not the job's, or not as many as it chooses.
        """
        if not set(sites) <= set(self.sites) or len(sites) != self.placement.choose:
            raise ValueError(f"{sorted(sites)} are not {self.placement.choose} of the job's sites")
        return dataclasses.replace(
            self,
            sites=tuple(site for site in self.sites if site in sites),
            data={site: mount for site, mount in self.data.items() if site in sites},
            placement=Placement(),
        )

    def as_run(self, run: RunName) -> JobSpec:
        """Return the job as one of its runs: its name is the id of the run.

        A file cannot name a run: the coordinator numbers them.
        """
        return self if self.name == run.id else dataclasses.replace(self, name=run.id)

    # --- reading ----------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path) -> JobSpec:
        """Return the job in ``path``, with its policy and the owner's key read as well.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return JobFiles.load(path).spec

    @classmethod
    def from_toml(
        cls,
        source: bytes | str,
        where: str = "job.toml",
        *,
        policy: AppraisalPolicy | None = None,
    ) -> JobSpec:
        """Return the job in ``source``; no file is read.

        Its policy is ``policy``, or the source has the digest of it; the owner's key is written
        out in the source, as :meth:`to_toml` does.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        spec = _complete(reading.read(cls, source, where=where), where, policy)
        _require_updates(spec, source, where)
        return spec

    @classmethod
    def from_json(cls, data: bytes | str, where: str = "the job") -> JobSpec:
        """Return what :meth:`to_json` wrote. Nothing is read from disk.

        :raises JobError: when it is not a job.
        """
        if len(data) > MAX_JOB_BYTES:
            raise JobError(f"{where}: {len(data)} bytes; at most {MAX_JOB_BYTES} are read")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise JobError(f"{where}: is not JSON") from None
        if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
            raise JobError(f"{where}: is not a job of format {_FORMAT}")
        try:
            run = RunName.of_id(str(document.get("name")), "name")
            placed = {"app": _ELSEWHERE, "policy": _ELSEWHERE, **document, "name": run.name}
            return _complete(reading.read(cls, placed, where=where), where).as_run(run)
        except ConfigError as error:
            raise JobError(str(error), hint=error.hint) from None

    # --- writing ----------------------------------------------------------------------

    def to_table(self) -> dict[str, Any]:
        """Return the job in the grammar of its file, defaults written out."""
        values: dict[str, Any] = to_plain(self)
        for mount in values["data"].values():
            for key in [key for key, value in mount.items() if not value]:
                del mount[key]
        if not self.placement.choose:
            # Left out when empty, so that such jobs keep the digest of earlier releases.
            del values["placement"]
        if self.app_logs == "off":
            del values["app_logs"]  # for the same reason
        if self.aggregation.site_filters == "accept":
            del values["aggregation"]["site_filters"]  # likewise
        if not self.aggregation.masked:
            del values["aggregation"]["secure"], values["aggregation"]["secagg"]
        del values["privacy"], values["compression"]
        if self.privacy is not None:
            values["privacy"] = self.privacy.to_mapping()
        if self.compression.active:
            values["compression"] = self.compression.to_mapping()
        return values

    def to_toml(self) -> str:
        """Return a file that names no other file: :meth:`from_toml` reads an equal job."""
        return dumps(self.to_table())

    def to_json(self) -> str:
        """Return the job as one JSON document for the wire and for state on disk.

        It is encoded once: a job of many sites is sent to each of them.
        """
        return self._json

    @cached_property
    def _json(self) -> str:
        document = {"format": _FORMAT, **self.to_table()}
        return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)

    # --- binding ----------------------------------------------------------------------

    def canonical(self) -> bytes:
        """Return the job without paths as canonical JSON: sorted keys, no spaces, ASCII.

        Left out are the paths of the submitter's machine, ``app`` and ``policy``; the digest
        of the policy is there instead, and :func:`workload_digest` adds that of the code.
        """
        document = {"format": _FORMAT, **self.to_table()}
        del document["app"], document["policy"]
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def digest(self) -> bytes:
        """Return the SHA-256 of :meth:`canonical`, 32 bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.canonical()).digest()

    def owner_public_key(self) -> bytes:
        """Return the owner's raw X25519 public key, 32 bytes; empty when the job has none."""
        return parse_owner_key(self.owner_key) if self.owner_key else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """A job's file and what it names, each read and parsed once. ``policy_toml`` is the text."""

    spec: JobSpec
    policy: AppraisalPolicy
    policy_file: Path
    policy_toml: str

    @classmethod
    def load(cls, path: Path) -> JobFiles:
        """Read the job in ``path``, its policy and the owner's key.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        :raises PolicyError: when the policy is not one.
        """
        from attestation.policy.parse import parse_policy

        data = reading.file_bytes(
            path, limit=MAX_JOB_TOML_BYTES, what="the job", made_by="fedlearn job init"
        )
        spec = reading.read(JobSpec, data, where=str(path))
        _require_updates(spec, data, str(path))
        file = path.parent / spec.policy
        text = reading.file_bytes(file, what="the policy", made_by="fedlearn policy init")
        policy = parse_policy(text, where=str(file))
        return cls(
            spec=_complete(spec, str(path), policy, path.parent),
            policy=policy,
            policy_file=file,
            policy_toml=text.decode(),
        )


def workload_digest(job_digest: bytes, bundle_digest: bytes) -> bytes:
    """Return what evidence is bound to: the job and its code, 32 bytes.

    ``SHA-256("fedlearn-workload/1\\0" | LP(job) | LP(bundle))``, ``LP(x) = u32be(len x) | x``.

    :raises ValueError: when either is not a digest of 32 bytes.
    """
    for what, digest in (("job", job_digest), ("bundle", bundle_digest)):
        if len(digest) != _DIGEST_BYTES:
            raise ValueError(f"a {what} digest has {_DIGEST_BYTES} bytes, not {len(digest)}")
    return hashlib.sha256(_WORKLOAD_DOMAIN + pack(job_digest, bundle_digest)).digest()


def _require_updates(spec: JobSpec, source: bytes | str, where: str) -> None:
    """Refuse a new job whose rounds may have too few updates for its strategy.

    A job that an earlier release accepted is read without this, so that its results stay in reach.
    """
    few = too_few_updates(spec.strategy.name, spec.strategy.options, spec.quorum)
    if few:
        line = toml.parse(source).line(("strategy", "name"))
        raise ConfigError(
            f"{few}; raise `quorum`, name more sites, or use another strategy",
            where=f"{where}:{line}" if line else where,
            key="strategy.name",
        )


def _complete(
    spec: JobSpec, where: str, policy: AppraisalPolicy | None = None, base: Path | None = None
) -> JobSpec:
    """Add what other files contain; their paths start from ``base``."""
    path = spec.policy if base is None else str(base / spec.policy)
    return dataclasses.replace(
        spec,
        policy_digest=_policy_digest(spec, where, policy, path),
        owner_key=read_owner_key(spec.owner_key, where, base),
    )


def _policy_digest(spec: JobSpec, where: str, policy: AppraisalPolicy | None, path: str) -> bytes:
    if policy is None:
        if spec.policy_digest:
            return spec.policy_digest
        raise ConfigError(
            "is needed where the policy itself is not given", where=where, key="policy_digest"
        )
    digest = policy.digest
    if spec.policy_digest and spec.policy_digest != digest:
        raise ConfigError(
            f"is not the digest of {path}, which is {digest.hex()}",
            where=where,
            key="policy_digest",
            hint="the policy was changed after the job was written; remove the key or correct it",
        )
    return digest
