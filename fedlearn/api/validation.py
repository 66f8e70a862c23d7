"""The checks of a job that need no coordinator."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attestation.config import shown
from attestation.evidence import Tee
from attestation.policy.launch import launch_warnings, require_launch_identity
from attestation.policy.model import AppraisalPolicy
from attestation.policy.sign import MAX_SIGNATURE_BYTES, signer_of, verify_policy
from fedlearn import config
from fedlearn.api.inspection.imports import Imports, follow_imports
from fedlearn.api.inspection.notes import app_notes, privacy_notes
from fedlearn.api.inspection.sources import AppSources, read_sources
from fedlearn.app.checks import MAX_BUNDLE_BYTES, Application, check_folder, read_bundle
from fedlearn.errors import ConfigError
from fedlearn.faults import Faults
from fedlearn.job.spec import JobFiles, JobSpec
from fedlearn.job.strategies import AGGREGATED, APP, VISIBLE_TO_APP
from fedlearn.job.tables import Scalar

__all__ = ["Report", "examine", "policy_signature"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A valid job. ``found`` states its facts, ``warnings`` what should be reviewed.

    ``bundle`` is the app as it is submitted. ``app_notes`` are those of the warnings that are about
    job and app together, such as a setting without an effect. ``needs`` are the distributions that
    the app depends on.
    """

    spec: JobSpec
    app: Path
    bundle: bytes = field(repr=False)
    policy_file: Path
    policy_toml: str
    found: tuple[str, ...]
    warnings: tuple[str, ...]
    app_notes: tuple[str, ...]
    needs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {
            "ok": True,
            "name": self.spec.name,
            "digest": self.spec.digest().hex(),
            "policy_digest": self.spec.policy_digest.hex(),
            "bundle_digest": hashlib.sha256(self.bundle).hexdigest(),
            "found": list(self.found),
            "warnings": list(self.warnings),
        }


def examine(path: Path, files: JobFiles | None = None) -> Report:
    """Check a job with its policy and its app. No code of the app runs.

    ``files`` are the job's file and its policy where they were read before; else they are read.

    Everything that is wrong is reported at once, except what can only be checked when the job's
    file and its policy are read.

    :raises ConfigError: naming file, line and key of what is wrong.
    :raises JobError: when the app cannot run: it is not an application, a file of it does not
        compile, or an import of it fails; or with one line for each of several faults.
    :raises PolicyError: when the policy is not one, or pins no launch identity of a TEE that
        it accepts.
    :raises VerificationError: when the signature beside it is not a signature of it.
    :raises PrivacyError: when the rounds would spend more than the privacy budget.
    """
    files = files or JobFiles.load(path)
    spec, policy, policy_file = files.spec, files.policy, files.policy_file
    app = path.parent / spec.app
    faults = Faults()
    faults.of(lambda: require_launch_identity(policy, where=str(policy_file)))
    signature = faults.of(lambda: policy_signature(policy_file)) or b""
    signer = faults.of(lambda: _signer(policy, signature))
    privacy = faults.of(lambda: _privacy(spec))
    inspected = _inspect(spec, app, path, faults)
    faults.check()
    assert privacy is not None
    assert inspected is not None
    bundle, application, sources, imports = inspected
    notes = app_notes(spec, application, sources, imports) + privacy_notes(spec, sources)
    found: tuple[str, ...] = (
        f"{spec.name}: {spec.rounds} rounds on {len(spec.sites)} sites, "
        f"at least {spec.quorum} in each, {spec.deadline_s:g} s for one",
        f"app {application.name} {application.version} in {app}",
        _strategy(spec, sources),
        _updates(spec),
        f"policy {policy.name} accepts {', '.join(policy.accept) or 'nobody'}; its digest is "
        f"{policy.digest.hex()}",
        f"bundle {hashlib.sha256(bundle).hexdigest()}, the digest that sites put into "
        "accept.bundles",
        privacy,
        *([f"policy signed by the key {signer.hex()}, for accept.policy_keys"] if signer else []),
    )
    return Report(
        spec=spec,
        app=app,
        bundle=bundle,
        policy_file=policy_file,
        policy_toml=files.policy_toml,
        found=found,
        warnings=(*_warnings(spec, policy, policy_file), *notes),
        app_notes=notes,
        needs=application.needs,
    )


def policy_signature(policy_file: Path) -> bytes:
    """Return the signature beside a policy, ``FILE.sig``; empty if there is none.

    :raises ConfigError: when it cannot be read.
    """
    path = policy_file.with_name(f"{policy_file.name}.sig")
    if not path.exists():
        return b""
    return config.file_bytes(path, limit=MAX_SIGNATURE_BYTES, what="the policy's signature")


def _bundle(app: Path) -> bytes:
    """Return a bundle as it is, or a folder as a bundle."""
    if app.is_file():
        return config.file_bytes(app, limit=MAX_BUNDLE_BYTES, what="the bundle")
    check_folder(app)
    # Flower takes a second to import: the folder is checked first.
    from server.flower.application.bundle import build

    return build(app)


def _strategy(spec: JobSpec, sources: AppSources) -> str:
    if spec.strategy.name != APP:
        return f"strategy {spec.strategy.name}"
    own = ", ".join(f"{one.title} at {one.where}" for one in sources.strategies())
    return f"strategy {APP}: the ServerApp makes it" + (f" ({own})" if own else "")


def _signer(policy: AppraisalPolicy, signature: bytes) -> bytes:
    """Return the digest of the key that signed the policy; empty where there is no signature."""
    if not signature:
        return b""
    return verify_policy(policy, signature, key_digests={signer_of(signature)})


def _inspect(
    spec: JobSpec, app: Path, path: Path, faults: Faults
) -> tuple[bytes, Application, AppSources, Imports] | None:
    """Return an app, as far as it tells without being run; None where something is wrong."""
    bundle = faults.of(lambda: _bundle(app))
    if bundle is None:
        return None
    read = faults.of(lambda: read_bundle(bundle, where=str(app)))
    if read is None:
        return None
    application, contents = read
    for key, value in spec.config.items():
        faults.of(partial(_check_setting, key, value, application, path))
    sources = faults.of(lambda: read_sources(contents, where=str(app)))
    if sources is None:
        return None
    imports = faults.of(lambda: follow_imports(sources, application, where=str(app)))
    return None if imports is None else (bundle, application, sources, imports)


def _check_setting(key: str, value: Scalar, application: Application, path: Path) -> None:
    if key not in application.defaults:
        known = [str(name) for name in application.defaults]
        near = difflib.get_close_matches(key, known, n=1)
        wish = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
        raise ConfigError(
            f"the app {application.name} has no such setting; {wish}",
            where=str(path),
            key=f"config.{key}",
            hint="a setting and its default are in [tool.flwr.app.config] of the app",
        )
    default = application.defaults[key]
    numbers = isinstance(default, float) and type(value) in (int, float)
    if type(value) is not type(default) and not numbers:
        raise ConfigError(
            f"must be like the app's default {shown(default)}, not {shown(value)}",
            where=str(path),
            key=f"config.{key}",
        )


def _updates(spec: JobSpec) -> str:
    if spec.aggregation.visible:
        return f"updates {VISIBLE_TO_APP}: the app's ServerApp receives the update of each site"
    if spec.aggregation.masked:
        return (
            f"updates masked ({spec.aggregation.secure}): the coordinator learns their sum and no "
            "single one, and no loss or metric of a site leaves it"
        )
    return (
        f"updates {AGGREGATED}: the app's ServerApp receives the aggregate of each round only; "
        f'an app with an own aggregation or the legacy API needs "{VISIBLE_TO_APP}"'
    )


def _privacy(spec: JobSpec) -> str:
    if spec.privacy is None:
        return "no privacy table: what the model reveals is not limited"
    # The accountant takes a second to import.
    from fedlearn.privacy import Budget

    return f"privacy after all rounds: {Budget.require(spec.privacy, spec.rounds)}"


def _warnings(spec: JobSpec, policy: AppraisalPolicy, policy_file: Path) -> list[str]:
    notes = []
    if not policy.accept:
        notes.append(f"{policy_file} accepts no kind of evidence: nobody will be admitted")
    if policy.insecure_sample:
        notes.append(
            f"{policy_file} accepts software evidence (insecure_sample): "
            "it proves nothing about hardware"
        )
    for who, part in (("clients", policy), ("the coordinator", policy.coordinator)):
        if part is not None:
            notes += [f"{policy_file}, of {who}: {text}" for text in launch_warnings(part)]
        if part is not None and Tee.SAMPLE in part.accept and not part.insecure_sample:
            rest = [tee for tee in part.accept if tee != Tee.SAMPLE]
            alone = "" if rest else ": nobody will be admitted"
            notes.append(
                f"{policy_file} accepts sample evidence of {who} without insecure_sample = true, "
                f"so that it is refused{alone}"
            )
    if policy.insecure_debug:
        notes.append(f"{policy_file} accepts TEEs whose memory their host can read")
    if without := [site for site in spec.sites if site not in spec.data]:
        notes.append(f"no data named for {', '.join(without)}: those sites choose")
    if not spec.owner_key:
        notes.append("no owner_key: only the coordinator can open the finished model")
    if spec.aggregation.visible:
        notes.append(
            "the app receives the update of each site: a site runs this job only with "
            "accept.visible_updates = true in its site.toml"
        )
    return notes
