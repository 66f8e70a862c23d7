"""``fedlearn job try``: runs a job here, with a temporary coordinator and temporary sites.

The coordinator and each site that the job names are processes that end with the run. They are the
same as in production except the machines, which are simulated (:mod:`fedlearn.local.machines`): a
policy for these machines replaces the job's policy. The run is kept in a folder
(:mod:`fedlearn.results.run_folder`), from which it can be continued until it has finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.evidence import Tee
from attestation.policy.parse import parse_policy
from fedlearn.api.downloads import download_model
from fedlearn.api.owned import open_owned
from fedlearn.api.result import Result
from fedlearn.api.sources import FolderSource
from fedlearn.api.validation import Report
from fedlearn.errors import ConfigError, Interrupted, JobError
from fedlearn.extras import extra_of, install, require
from fedlearn.identity.keyfile import make_key_pair, read_private_key
from fedlearn.identity.login import OperatorLogin, ca_pin
from fedlearn.job.events import Event, Log
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobState, JobStatus
from fedlearn.local.app_output import AppOutput
from fedlearn.local.children import Children, terminate_as_interrupt
from fedlearn.local.federation import Federation
from fedlearn.local.machines import TeeChoice, choose_tee
from fedlearn.local.policy import policy_text
from fedlearn.results.run_folder import About, Recorder, RunFolder
from fedlearn.terminal.console import line
from fedlearn.terminal.notebook import in_notebook
from fedlearn.terminal.progress import Show
from fedlearn.update import sealed

__all__ = ["RUNS", "begin", "resume"]

RUNS: Final = Path("runs")
"""Where runs are kept if no folder is named."""

_OWNER: Final = "owner.pem"
_APP_LOG: Final = "app.log"


def begin(
    report: Report, file: Path, *, path: Path | None, data: Path, tee: TeeChoice, show: Show
) -> RunFolder:
    """Run a job to its end in a new folder, and return the folder.

    :param file: the job's file.
    :param path: the folder; without one, ``runs/NAME-N`` with the next N.
    :param data: a folder with one folder of data for each site.
    :raises ConfigError: when the data of a site is missing, the folder exists, or a package on
        which the app depends is not installed.
    :raises JobError: when the job fails.
    :raises Interrupted: on Ctrl-C; the run can be continued by :func:`resume`.
    """
    spec = report.spec
    _check_installed(report.needs)
    require("server", needed_for="a coordinator on this machine")
    folders = {site: _folder(data, site) for site in spec.sites}
    kind, insecure = choose_tee(tee)
    line(f"insecure: {insecure}", style="yellow")
    for note in report.app_notes:
        line(f"note: {note}", style="yellow")
    about = About(
        job=spec.name,
        metric=spec.evaluate.metric,
        tee=kind.value,
        digest=spec.digest(),
        bundle=hashlib.sha256(report.bundle).digest(),
    )
    folder = RunFolder.create_below(RUNS, about) if path is None else RunFolder.create(path, about)
    with folder.record() as recorder, _federation(folder, file) as federation:
        federation.open(spec.sites)
        for site in spec.sites:
            mount = spec.data.get(site)
            name = mount.set if mount is not None and mount.set else spec.name
            federation.join(
                site,
                data={name: folders[site]},
                bundle=about.bundle,
                visible_updates=spec.aggregation.visible,
                app_logs="insecure-plain",
            )
        federation.await_connected(spec.sites)
        policy = policy_text(
            federation, name=spec.name, bundle=about.bundle, app=spec.name, sites=spec.sites
        )
        make_key_pair(folder.federation / _OWNER)
        owner = read_private_key(folder.federation / _OWNER)
        adapted = _adapted(spec, policy, owner).to_toml()
        folder.policy.write_text(policy)
        folder.job.write_text(adapted)
        federation.operator.submit_job(job_toml=adapted, bundle=report.bundle, policy_toml=policy)
        _follow(folder, federation, recorder, show, sites=spec.sites)
    _finish(folder, federation.state)
    return folder


def resume(report: Report, file: Path, folder: RunFolder, *, show: Show) -> RunFolder:
    """Continue a run from its last sealed checkpoint to its end, and return its folder.

    :raises ConfigError: when the run has finished or did not begin, the job or its app were changed
        since, or another process runs it.
    :raises JobError: when the job fails.
    :raises Interrupted: on Ctrl-C; the run can be continued.
    """
    where, about = str(folder.path), folder.about
    if not folder.federation.is_dir():
        raise ConfigError("the run has finished", where=where, hint="begin one without --resume")
    if not folder.job.exists():
        raise ConfigError(
            "the run ended before its job was submitted; nothing is left to continue",
            where=where,
            hint="begin one without --resume",
        )
    for what, before, now in (
        ("job", about.digest, report.spec.digest()),
        ("app", about.bundle, hashlib.sha256(report.bundle).digest()),
    ):
        if before != now:
            raise ConfigError(
                f"the {what} was changed since this run began",
                where=where,
                hint="take the change back, or begin a run without --resume",
            )
    with folder.record() as recorder, _federation(folder, file) as federation:
        federation.reopen()
        state = federation.operator.get_job(about.job)
        if not state.status.open and state.status is not JobStatus.FINISHED:
            federation.operator.resume_job(about.job)
        _follow(folder, federation, recorder, show, sites=report.spec.sites, again=True)
    _finish(folder, federation.state)
    return folder


@contextlib.contextmanager
def _federation(folder: RunFolder, file: Path) -> Iterator[Federation]:
    """A context with a federation below ``folder``, whose processes end with it.

    :raises Interrupted: in place of KeyboardInterrupt, once the job was submitted.
    """
    try:
        with terminate_as_interrupt(), Children(folder.logs) as children:
            federation = Federation(folder.federation, children, tee=Tee(folder.about.tee))
            try:
                yield federation
            finally:
                federation.close()
    except KeyboardInterrupt:
        if not folder.job.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        again = f"`fedlearn job try {file} --resume --run {folder.path}`"
        if in_notebook():
            again = f"`job.try_(folder={str(folder.path)!r}, resume=True)`"
        raise Interrupted(
            f"the run is kept in {folder.path}", hint=f"{again} continues it"
        ) from None


def _follow(
    folder: RunFolder,
    federation: Federation,
    recorder: Recorder,
    show: Show,
    *,
    sites: Iterable[str],
    again: bool = False,
) -> None:
    """Record and show events to the end of the job, and fetch its model.

    What the app writes at the sites is shown between them, and kept in ``logs/app.log``.

    :param again: whether the run is continued.
    :raises JobError: when the job does not finish well.
    """
    operator, job = federation.operator, folder.about.job
    logs = {site: federation.client_logs(site) for site in sites}
    one_at_a_time = threading.Lock()
    with show, (folder.logs / _APP_LOG).open("a", encoding="utf-8") as kept:
        for event, unix_ms in folder.events():
            show.show(event, unix_ms=unix_ms)

        def show_line(site: str, text: str) -> None:
            kept.write(f"{site} | {text}\n")
            with one_at_a_time:
                show.show(Log(line=text, site=site), unix_ms=int(time.time() * 1000))

        with AppOutput(logs, show_line, old=again):
            for item in operator.follow_job(job, after=recorder.sequence):
                event = Event.decode(item.kind, item.json)
                recorder.add(event, unix_ms=item.unix_ms, sequence=item.sequence)
                with one_at_a_time:
                    show.show(event, unix_ms=item.unix_ms)
                federation.check()
    _report(folder)
    state = operator.get_job(job)
    if state.status is not JobStatus.FINISHED:
        raise JobError(
            f"job {job} {state.status}: {state.detail}",
            hint=f"the logs are in {folder.logs}; --resume continues the run from its last "
            "checkpoint, if the cause is in the data or the machine",
        )
    if state.model:
        _fetch(folder, federation, state)


def _report(folder: RunFolder) -> None:
    """Write the report, also of a run that did not finish well."""
    Result(FolderSource(folder)).report(folder.report, replace=True)


def _fetch(folder: RunFolder, federation: Federation, state: JobState) -> None:
    """Download the sealed model, open it as its owner, and write the weights."""
    file = folder.federation / "model.sealed"
    pin = bytes.fromhex(ca_pin(OperatorLogin.load(federation.login).ca))
    download_model(federation.operator, state.reference, file, pin=pin, replace=True)
    with open_owned(file, folder.federation / _OWNER) as reader:
        sealed.export(reader, folder.model, replace=True)


def _finish(folder: RunFolder, state: Path) -> None:
    """Keep the ledger of the coordinator's ``state``; remove what only a run that goes on needs."""
    from server.ledger import LEDGER_FILE, PUBLIC_KEY_FILE

    folder.ledger.mkdir(mode=0o700, exist_ok=True)
    for path in [*state.glob(f"{LEDGER_FILE}*"), state / PUBLIC_KEY_FILE]:
        shutil.move(path, folder.ledger / path.name)
    shutil.rmtree(folder.federation)


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
