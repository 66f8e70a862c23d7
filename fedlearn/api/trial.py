"""``fedlearn job try``: runs a job here, with a temporary coordinator and temporary sites.

The coordinator and each site that the job names are processes that end with the command. They are
the same as in production except the machines, which are simulated
(:mod:`fedlearn.local.machines`): a policy for these machines replaces the job's policy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.policy.parse import parse_policy
from fedlearn.api.validation import Report
from fedlearn.errors import ConfigError, JobError
from fedlearn.extras import extra_of, install
from fedlearn.job import events
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobStatus
from fedlearn.local.children import Children, terminate_as_interrupt
from fedlearn.local.federation import Federation, policy_text
from fedlearn.local.machines import TeeChoice, choose_tee
from fedlearn.sealing import PrivateKey, open_sealed
from fedlearn.terminal.console import line
from fedlearn.terminal.progress import Show
from fedlearn.update import sealed

__all__ = ["Trial", "attempt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of a trial.

    ``sites`` are those that took part; ``model`` is the file with the weights, or None when the job
    finished without a model.
    """

    job: str
    rounds: int
    sites: tuple[str, ...]
    tee: str
    insecure: str
    model: Path | None


def attempt(
    report: Report, *, data: Path, tee: TeeChoice, model: Path, bundle: bytes, show: Show
) -> Trial:
    """Run the job to its end and write its weights to ``model``.

    :raises ConfigError: when the data of a site is missing, ``model`` exists, or a package on which
        the app depends is not installed.
    :raises JobError: when the job fails.
    """
    spec = report.spec
    _check_installed(report.needs)
    folders = {site: _folder(data, site) for site in spec.sites}
    if model.exists():
        raise ConfigError("exists", where=str(model), hint="name another file with --model")
    kind, insecure = choose_tee(tee)
    line(f"insecure: {insecure}", style="yellow")
    owner = X25519PrivateKey.generate()
    with (
        tempfile.TemporaryDirectory(prefix="fedlearn-try-") as scratch,
        terminate_as_interrupt(),
        Children(Path(scratch) / "logs") as children,
    ):
        federation = Federation(Path(scratch), children, tee=kind)
        try:
            federation.open(spec.sites)
            digest = hashlib.sha256(bundle).digest()
            for site in spec.sites:
                mount = spec.data.get(site)
                name = mount.set if mount is not None and mount.set else spec.name
                federation.join(
                    site,
                    data={name: folders[site]},
                    bundle=digest,
                    visible_updates=spec.aggregation.visible,
                )
            federation.await_connected(spec.sites)
            policy = policy_text(
                federation, name=spec.name, bundle=digest, app=spec.name, sites=spec.sites
            )
            adapted = _adapted(spec, policy, owner)
            sealed_model = _run(federation, adapted, policy, bundle, show)
            if sealed_model:
                _fetch(federation, spec.name, owner, model)
        finally:
            federation.close()
    return Trial(
        job=spec.name,
        rounds=spec.rounds,
        sites=spec.sites,
        tee=kind.value,
        insecure=insecure,
        model=model if sealed_model else None,
    )


def _folder(data: Path, site: str) -> Path:
    folder = data / site
    if not folder.is_dir():
        raise ConfigError(
            "there is no data of this site",
            where=str(folder),
            hint=f"put the data of {site} there, or name another folder with --data",
        )
    return folder


def _check_installed(needs: Iterable[str]) -> None:
    for name in needs:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            extra = extra_of(name)
            raise ConfigError(
                f"the app depends on {name!r}, which is not installed",
                where="project.dependencies",
                hint=install(extra) if extra else f"pip install {name}",
            ) from None


def _adapted(spec: JobSpec, policy: str, owner: X25519PrivateKey) -> JobSpec:
    """Return the job with the policy of the simulated machines and an owner key made here."""
    public = owner.public_key().public_bytes_raw()
    return dataclasses.replace(
        spec,
        policy_digest=parse_policy(policy.encode()).digest,
        policy="policy.toml",
        app="app",
        launcher="any",
        owner_key=owner_key_text(public),
        data={
            site: dataclasses.replace(mount, set=mount.set or spec.name, path="", claim="")
            for site, mount in spec.data.items()
        },
    )


def _run(federation: Federation, spec: JobSpec, policy: str, bundle: bytes, show: Show) -> bool:
    """Run the job to its end; return whether it made a model."""
    operator = federation.operator
    operator.submit_job(job_toml=spec.to_toml(), bundle=bundle, policy_toml=policy)
    with show:
        for item in operator.follow_job(spec.name):
            show.show(events.Event.decode(item.kind, item.json), unix_ms=item.unix_ms)
            federation.check()
    state = operator.get_job(spec.name)
    if state.status is not JobStatus.FINISHED:
        raise JobError(f"the job is {state.status}: {state.detail}")
    return bool(state.model)


def _fetch(federation: Federation, job: str, owner: X25519PrivateKey, model: Path) -> None:
    """Open the sealed model as its owner, and write the weights to ``model``."""
    files = (federation.state / "store" / "models").glob(f"{job}.[0-9]*")
    newest = max(
        files,
        key=lambda path: int(path.name.split(".")[1]),
        default=None,
    )
    if newest is None:
        raise JobError(f"job {job} has no sealed model")
    with open_sealed(newest, PrivateKey(owner)) as reader:
        sealed.export(reader, model)
