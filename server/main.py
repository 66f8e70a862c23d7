"""``fedlearn-server``: initialize, check and run a coordinator.

The page is docs/reference/cli/fedlearn-server.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fedlearn import __version__
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import (
    COMPLETION,
    REFUSED,
    Commands,
    Noun,
    config_option,
    json_option,
    line,
    print_json,
    printable,
)
from fedlearn.terminal.logs import configure_logging, log_options

__all__ = ["main"]


_config = config_option("server.toml", "The coordinator's configuration.")


@click.group(
    cls=Commands,
    name="fedlearn-server",
    nouns={
        "init": Noun(
            module="server.initial",
            attribute="init",
            summary="Initialize a coordinator: its keys, CA, ledger and first operator.",
        ),
        "completion": COMPLETION,
    },
)
@click.version_option(__version__, prog_name="fedlearn-server", message="%(prog)s %(version)s")
def main() -> None:
    """Run a coordinator: admission, sealed models, the ledger and the rounds."""


@main.command("establish")
def initialize_pod() -> None:
    """Initialize a coordinator in a pod at its first start; print the operator's answer at each.

    What the chart's init container runs. It is part of the image and not of a ConfigMap, so that
    what makes the keys is measured with the image.
    """
    script = Path(__file__).with_name("establish.sh")
    os.execvp("sh", ["sh", str(script)])  # noqa: S606 (the image's shell)


@main.command()
@_config
@log_options
@json_option
def run(path: Path, level: str, form: str, as_json: bool) -> int:
    """Run the coordinator until SIGTERM or Ctrl-C; jobs continue after the next start."""
    from server.config import ServerConfig
    from server.rpc.open_files import raise_open_files

    config, document = ServerConfig.read(path)
    configure_logging(level, form=form)
    raise_open_files(config.limits.sites)
    stop = _until_stopped()
    from server.service import serve

    with serve(config, document) as service:
        addresses = {
            "gate": service.gate_address,
            "control": service.control_address,
            "fleet": service.fleet_address,
        }
        if as_json:
            print_json({"event": "listening", "pid": os.getpid(), **addresses})
        else:
            for name, address in addresses.items():
                line(f"{name:8} {address}")
        sys.stdout.flush()
        stop.wait()
    return 0


@main.command("app-host")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="Where it listens; its folder is made for this user alone.",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where each application gets a folder; nothing else may be in it.",
)
@click.option(
    "--most", type=click.IntRange(1, 1000), default=8, show_default=True, help="Applications."
)
@json_option
def app_host(path: Path, scratch: Path, most: int, as_json: bool) -> int:
    """Run the code of jobs (their ServerApps) for a coordinator in another container.

    The coordinator names the socket in server.toml as `jobs.app_host`, and runs as the same user.
    """
    from fedlearn import sandbox
    from server.flower.application.app_host import AppHost

    configure_logging()
    sandbox.protect_this_process()
    stop = _until_stopped()
    report = sandbox.report()
    host = AppHost(path.absolute(), scratch=scratch.absolute(), most=most)
    host.start()
    if as_json:
        print_json({"event": "listening", "pid": os.getpid(), "socket": str(path)})
    else:
        line(f"socket   {path}")
        line(f"sandbox  {report}")
    sys.stdout.flush()
    stop.wait()
    host.close()
    return 0


@main.command()
@click.argument("name")
@click.argument("csr", type=click.Path(path_type=Path, dir_okay=False))
@_config
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write the answer; NAME.toml by default.",
)
def operator(name: str, csr: Path, path: Path, out: Path | None) -> None:
    """Let operator NAME in by the request in CSR, where no other operator can.

    For a coordinator that is not running. The answer that is written holds no secret.
    """
    from fedlearn.identity.login import ca_pin
    from fedlearn.identity.spiffe import checked_name
    from server.config import ServerConfig
    from server.state_directory import StateDirectory, admit_operator

    checked_name(name, "NAME")
    target = out or Path(f"{name}.toml")
    if target.exists():
        raise ConfigError("exists", where=str(target), hint="name another file with --out")
    config = ServerConfig.load(path)
    with StateDirectory.open(config) as directory:
        control = config.advertised("control", config.listen.control)
        grant = admit_operator(directory, name, csr, now=datetime.now(UTC), control=control)
        pin = ca_pin(directory.ca.certificate_pem)
    target.write_text(grant.to_toml())
    line(f"{name} is an operator; send {target} there:", style="green")
    line(f"  fedlearn operator login {target} --ca-pin {pin}")


@main.command()
@_config
@json_option
def measure(path: Path, as_json: bool) -> None:
    """Print what a coordinator with this configuration measures, as values for a policy.

    Run it where you trust the files, with the version of the software that will run.
    """
    from fedlearn.identity.software import software_digest
    from server.config import ServerConfig
    from server.measurement import config_digest
    from server.state_directory import protector_names

    config, document = ServerConfig.read(path)
    roots = config.trust.anchors().tpm_ek_roots
    measured = {
        "software": software_digest().hex(),
        "config": config_digest(
            document, roots=roots, protectors=protector_names(config.keys)
        ).hex(),
    }
    if as_json:
        print_json(measured)
        return
    for claim, value in measured.items():
        line(f'[[coordinator.reference]]\nclaim = "{claim}"\nvalue = "{value}"')


@main.command()
@_config
@json_option
def adopt(path: Path, as_json: bool) -> None:
    """Go on with the ledger and the store that are there, though one is older than the other.

    For a coordinator that is not running, where a backup is all that is left. What only the lost
    part knew is lost (revocations, removals, spent privacy); the ledger records what was adopted.
    """
    from server.adoption import adopt as adopted
    from server.config import ServerConfig

    found = adopted(ServerConfig.load(path))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    line(f"adopted, though: {found.disagreement}", style="yellow")
    line(f"ledger   ends at {found.ledger}")
    line(f"before   it ended at {found.head or 'nothing that is known'}")
    for model, version in found.versions.items():
        line(f"model    {model} is at version {version}")
    line("look at operators, sites and exclusions before you continue: revocations may be lost")


@main.command()
@_config
@json_option
def check(path: Path, as_json: bool) -> int:
    """Open everything, verify the ledger, the sealed models and the jobs, and change nothing.

    For a coordinator that is not running. Exits with 2 where jobs are set apart.
    """
    from fedlearn.config.attester import sample_key_digest
    from server.config import ServerConfig
    from server.state_directory import StateDirectory

    config = ServerConfig.load(path)
    found: dict[str, Any] = {"state": str(config.state), "models": {}}
    with StateDirectory.open(config) as directory:
        if (digest := sample_key_digest(config.attester, state=config.state)) is not None:
            found["insecure_sample_key"] = digest.hex()
        verified = directory.ledger.verify(directory.ledger.public_key)
        found["ledger"] = {"entries": verified.entries, "head": str(verified.head or "")}
        for model in directory.store.models():
            found["models"][model] = len(directory.store.verify(model))
        with contextlib.closing(directory.job_store()) as job_store:
            found["jobs"], found["set_apart"] = len(job_store.states()), dict(job_store.set_apart)
    if as_json:
        print_json(found)
    else:
        line(f"state    {found['state']}")
        if "insecure_sample_key" in found:
            line(f"key      {found['insecure_sample_key']}, of its sample evidence", style="yellow")
        line(f"ledger   {found['ledger']['entries']} entries, intact, as the store has it sealed")
        for model, versions in found["models"].items():
            line(f"model    {model}: {versions} sealed versions, intact")
        line(f"jobs     {found['jobs']}, {len(found['set_apart'])} set apart")
        for name, reason in found["set_apart"].items():
            line(printable(f"         {name}: {reason}"), style="yellow")
    return REFUSED if found["set_apart"] else 0


def _until_stopped() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    sys.exit(main())
