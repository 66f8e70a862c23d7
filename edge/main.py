"""``fedlearn-edge``: run, check and look after one site.

The page is docs/reference/cli/fedlearn-edge.md.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlearn import __version__
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import (
    COMPLETION,
    Commands,
    Noun,
    config_option,
    json_option,
    line,
    print_json,
    printable,
)
from fedlearn.terminal.logs import configure_logging, log_options

if TYPE_CHECKING:
    from attestation.attesters.tpm import TpmAttester
    from edge.agent.client_callbacks import ClientCallbacks
    from edge.agent.sealed_file import MonotonicCounter
    from edge.config.site import SiteConfig
    from edge.protocol.bootstrap import Bootstrap
    from edge.protocol.workload import Launcher, Workload
    from fedlearn.config.attesterfile import AttesterSettings

__all__ = ["main"]


_config = config_option("site.toml", "The site's configuration.")


@click.group(
    cls=Commands,
    name="fedlearn-edge",
    nouns={
        "init": Noun(
            module="edge.initial",
            attribute="init",
            summary="Write a site's configuration, and enroll the site.",
        ),
        "completion": COMPLETION,
    },
)
@click.version_option(__version__, prog_name="fedlearn-edge", message="%(prog)s %(version)s")
def main() -> None:
    """Run a site: its agent, its rules, and the clients that train on its data."""


@main.command()
@_config
@log_options
@json_option
def run(path: Path, level: str, form: str, as_json: bool) -> int:
    """Run the site's agent until SIGTERM or Ctrl-C."""
    from edge.agent.agent import Agent
    from edge.config.site import SiteConfig
    from edge.protocol.identity import SiteIdentity
    from fedlearn.config.attester import device, open_attester
    from fedlearn.sandbox import protect_this_process

    config = SiteConfig.load(path)
    identity = SiteIdentity.load(config.state)
    configure_logging(level, form=form)
    protect_this_process()
    os.umask(0o077)
    with device(config.attester, state=config.state) as attester:
        if config.launcher.kind == "process":
            # What the clients will need, as `check` and the doctor examine it.
            open_attester(attester, state=config.state, scope="check")
        agent = Agent(
            config,
            identity,
            launcher=lambda callbacks: _launcher(callbacks, config, attester),
            tpm=_tpm(config, attester),
            counter=_counter(config, attester),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        if as_json:
            print_json({"event": "running", "site": identity.site, "pid": os.getpid()})
        else:
            line(f"site {identity.site} follows {identity.gate_address}")
        sys.stdout.flush()
        agent.run()
    return 0


@main.command()
@_config
@json_option
def check(path: Path, as_json: bool) -> int:
    """Report what would keep this site from working, and change nothing."""
    from edge.client.dataset import Tally, records
    from edge.config.site import SiteConfig
    from edge.protocol.identity import SiteIdentity
    from fedlearn.config.attester import device, open_attester, sample_key_digest

    config = SiteConfig.load(path)
    identity = SiteIdentity.load(config.state)
    found: dict[str, Any] = {
        "site": identity.site,
        "coordinator": identity.gate_address,
        "pending": identity.pending,
        "expires": identity.expires.isoformat() if identity.expires else None,
        "app_logs": config.accept.app_logs,
        "filters": ", ".join(each.kind for each in config.privacy.filters) or None,
        "data": {},
    }
    with device(config.attester, state=config.state) as settings:
        if config.launcher.kind == "process":
            attester = open_attester(settings, state=config.state, scope="check")
            found["tee"] = attester.tee.value
        if (digest := sample_key_digest(settings, state=config.state)) is not None:
            found["insecure_sample_key"] = digest.hex()
        tpm = _tpm(config, settings)
        if tpm is not None:
            found["ek"] = tpm.identity().ek_digest.hex()
        if any(data.epsilon is not None for data in config.data.values()):
            found["budget"] = (
                "the TPM's counter detects an older copy of its file"
                if tpm is not None
                else "without a TPM here, an older copy of its file is not detected"
            )
    for name, data in sorted(config.data.items()):
        if data.path is not None:
            tally = Tally()
            count = sum(1 for _ in records(data.path, tally))
            found["data"][name] = count - tally.headers
    config.trust.anchors()
    if as_json:
        print_json(found)
    else:
        for key, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{name}: {count} records" for name, count in value.items())
            line(f"{key:<19} {'-' if value in (None, '') else value}")
    if identity.expires is not None and identity.expires <= datetime.now(UTC):
        raise ConfigError(
            "the site's certificate has expired",
            where=str(config.state),
            hint="the agent renews it with the join token when it runs",
        )
    return 0


@main.command()
@_config
@click.argument("job")
@click.argument("bundle")
@click.option("--withdraw", is_flag=True, help="Withdraw the approval.")
@json_option
def approve(path: Path, job: str, bundle: str, withdraw: bool, as_json: bool) -> int:
    """Approve that JOB runs the code with the SHA-256 BUNDLE on this site's data."""
    from attestation.durable import sync_directory, write_durably
    from edge.agent.orders import approval_name
    from edge.config.site import SiteConfig
    from fedlearn.job.run import checked_run_id

    config = SiteConfig.load(path)
    checked_run_id(job)
    try:
        digest = bytes.fromhex(bundle)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError("must be a SHA-256 in hexadecimal", key="BUNDLE")
    file = config.state / "approvals" / approval_name(job, digest)
    if withdraw:
        if file.exists():
            file.unlink()
            sync_directory(file.parent)
    else:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(file, b"")
    if as_json:
        print_json({"job": job, "bundle": digest.hex(), "approved": not withdraw})
    elif withdraw:
        line(f"{job} is no longer approved")
    else:
        line(f"{job} may run the code {bundle[:16]}... here", style="green")
    return 0


@main.command()
@_config
@click.option("--forget", default="", metavar="NAME", help="Accept any version of NAME again.")
@json_option
def policies(path: Path, forget: str, as_json: bool) -> int:
    """Show the newest version of each signed policy under which this site has run a job.

    An older version of the same name is refused.
    """
    from edge.agent.policy_versions import PolicyMemory
    from edge.config.site import SiteConfig

    memory = PolicyMemory(SiteConfig.load(path).state)
    if forget:
        memory.forget(forget)
    seen = memory.seen()
    if as_json:
        rows = {n: {"version": p.version, "digest": p.digest.hex()} for n, p in seen.items()}
        print_json({"policies": rows})
        return 0
    if forget:
        line(f"any version of {printable(forget)} is accepted again")
    for name, policy in seen.items():
        line(f"{printable(name)}  version {policy.version}  {policy.digest.hex()}")
    return 0


@main.group(cls=Commands)
def budget() -> None:
    """Show or reset the privacy budget of each data set, over all jobs."""


@budget.command()
@_config
@json_option
def show(path: Path, as_json: bool) -> int:
    """Show what all jobs together have spent and reserved of each data set's budget."""
    from edge.agent.budget_report import rows, sentences
    from edge.agent.budget_store import BudgetStore
    from edge.agent.sealed_file import file_key
    from edge.config.site import SiteConfig
    from edge.protocol.identity import SiteIdentity

    config = SiteConfig.load(path)
    identity = SiteIdentity.load(config.state)
    book = BudgetStore(config, file_key(identity.key), unbound=True).book()
    found = rows(config, book)
    if as_json:
        print_json({"data": [row.to_json() for row in found]})
        return 0
    for row in found:
        for text in sentences(row):
            line(printable(text))
    if not found:
        line("this site has no data sets, and no job was accepted yet")
    return 0


@budget.command()
@_config
@click.option(
    "--insecure-forget-spent",
    "forget",
    is_flag=True,
    help="Required: what jobs have learned of this site's data so far is no longer counted.",
)
@json_option
def reset(path: Path, forget: bool, as_json: bool) -> int:
    """Begin a new budget, where the old one is lost or cannot be opened. Stop the agent first."""
    from edge.agent.budget_store import BudgetStore
    from edge.agent.sealed_file import file_key
    from edge.config.site import SiteConfig
    from edge.protocol.identity import SiteIdentity
    from fedlearn.config.attester import device

    if not forget:
        raise ConfigError(
            "a new budget does not count what jobs have spent",
            key="--insecure-forget-spent",
            hint="restore the newest copy of the site's state, or give this option",
        )
    config = SiteConfig.load(path)
    identity = SiteIdentity.load(config.state)
    with device(config.attester, state=config.state) as settings:
        counter = _counter(config, settings)
        BudgetStore(config, file_key(identity.key), counter=counter).reset()
    if as_json:
        print_json({"data": sorted(config.data), "forgotten": True})
    else:
        line("the privacy budgets of this site are empty now", style="yellow")
    return 0


def _tpm(config: SiteConfig, attester: AttesterSettings) -> TpmAttester | None:
    """Return the TPM that clients of this site attest with, where they share this machine.

    Pods run on other machines, whose attestation keys the coordinator's operator pins.
    """
    from attestation.errors import AttesterError
    from fedlearn.config.attester import open_tpm

    if config.launcher.kind != "process":
        return None
    try:
        return open_tpm(attester, state=config.state)
    except AttesterError as error:
        if attester.kind != "auto":
            raise
        logging.getLogger(__name__).warning("no attester works on this machine: %s", error)
        return None


def _counter(config: SiteConfig, attester: AttesterSettings) -> MonotonicCounter | None:
    """Return the counter of this machine's TPM, where :func:`_tpm` finds one."""
    from attestation.attesters.tpm2_tools import DEFAULT_TCTI
    from attestation.tpm.seal import TpmCounter
    from edge.agent.sealed_file import COUNTER_INDEX

    if _tpm(config, attester) is None:
        return None
    return TpmCounter(attester.tcti or DEFAULT_TCTI, COUNTER_INDEX)


def _launcher(
    callbacks: ClientCallbacks, config: SiteConfig, attester: AttesterSettings
) -> Launcher:
    from edge.protocol.bootstrap import bootstrap_of

    anchors = config.trust.anchors()

    def prepare(workload: Workload) -> Bootstrap:
        return bootstrap_of(
            workload,
            identity=callbacks.identity,
            attester=attester,
            state=config.state,
            trust=anchors,
            sandbox=config.accept.sandbox,
            app_logs=config.accept.app_logs,
            filters=config.privacy.filters,
        )

    if config.launcher.kind == "kubernetes":
        from edge.kube.launcher import kube_launcher

        return kube_launcher(callbacks, config, prepare)
    from edge.agent.process_launcher import LocalLauncher

    return LocalLauncher(
        config.state / "clients",
        prepare=prepare,
        vouch_for=callbacks.vouch_for,
        seed_for=callbacks.seed_for,
        charge_for=callbacks.charge_for,
        report=callbacks.report,
        stop_s=config.launcher.stop_s,
    )


if __name__ == "__main__":
    sys.exit(main())
