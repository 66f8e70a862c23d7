"""``fedlearn-server``: establish, check and run a coordinator."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from fedlearn.console import Commands, line, print_json, version_text
from fedlearn.errors import ConfigError

__all__ = ["main"]

_OPEN_FILES: Final = 65_536
_TEMPLATE = """\
# One coordinator. Every key: server/config.py, or `fedlearn-server check --config FILE`.
state = "state"
trust_domain = "{trust_domain}"

[listen]                      # TLS for newcomers, and mutual TLS for everybody else
gate = "{host}:9443"
control = "{host}:9444"
fleet = "{host}:9445"

[keys]                        # what keeps the root key while the coordinator is not running
{keys}

[attester]                    # what proves this coordinator to its clients
kind = "{attester}"
"""


@click.group(cls=Commands)
@click.version_option(version_text(), prog_name="fedlearn-server", message="%(prog)s %(version)s")
def main() -> None:
    """Run a coordinator: admission, sealed models, the ledger and the rounds."""


def _config_option(command: Any) -> Any:
    return click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("server.toml"),
        show_default=True,
        help="The coordinator's configuration.",
    )(command)


@main.command()
@_config_option
@click.option("--trust-domain", default="fedlearn.local", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where a new one listens.")
@click.option(
    "--insecure-development",
    is_flag=True,
    help="Without a configuration: write one with a plain key file and a software attester.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def init(
    path: Path, trust_domain: str, host: str, insecure_development: bool, as_json: bool
) -> None:
    """Establish a coordinator: its keys, CA, ledger and first operator.

    Writes the configuration too where there is none.
    """
    from server.config import ServerConfig
    from server.home import OPERATOR_FOLDER, establish

    written = _write_template(path, trust_domain, host, insecure_development)
    try:
        config = ServerConfig.load(path)
        control = config.advertised("control", config.listen.control)
        establish(config, now=datetime.now(UTC), control_address=control)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    operator = config.state / OPERATOR_FOLDER
    if as_json:
        print_json({"state": str(config.state), "operator": str(operator), "config": str(path)})
        return
    line(f"established in {config.state}", style="green")
    line(f"next:  fedlearn-server run --config {path}")
    line(f"then:  fedlearn site token NAME --operator {operator}")


@main.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def run(path: Path, as_json: bool) -> int:
    """Run the coordinator until SIGTERM or Ctrl-C; jobs go on after the next start."""
    from server.config import ServerConfig

    config = ServerConfig.load(path)
    _log_to_stderr()
    _raise_open_files()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from server.service import serve

    with serve(config) as service:
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


@main.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def check(path: Path, as_json: bool) -> int:
    """Open everything, verify the ledger and the sealed models, and change nothing.

    For a coordinator that is not running.
    """
    from server.config import ServerConfig
    from server.home import Home

    config = ServerConfig.load(path)
    found: dict[str, Any] = {"state": str(config.state), "models": {}}
    with Home.open(config) as home:
        verified = home.ledger.verify(home.ledger.public_key)
        found["ledger"] = {"entries": verified.entries, "head": str(verified.head or "")}
        for model in home.store.models():
            found["models"][model] = len(home.store.verify(model))
    if as_json:
        print_json(found)
    else:
        line(f"state    {found['state']}")
        line(f"ledger   {found['ledger']['entries']} entries, intact")
        for model, versions in found["models"].items():
            line(f"model    {model}: {versions} sealed versions, intact")
    return 0


def _write_template(
    path: Path, trust_domain: str, host: str, insecure_development: bool
) -> list[Path]:
    """Write a configuration where there is none; return the files that were written."""
    if path.exists():
        if insecure_development:
            raise ConfigError(
                "exists, so --insecure-development has nothing to write",
                where=str(path),
                hint="leave the flag out, or name another file",
            )
        return []
    if not insecure_development:
        raise ConfigError(
            "does not exist",
            where=str(path),
            hint="write it (README, 'A coordinator'), or try things out with "
            "--insecure-development",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    key = _development_key(path.parent / "state")
    path.write_text(
        _TEMPLATE.format(
            trust_domain=trust_domain,
            host=host,
            keys='protect = ["insecure-plain-key-file"]',
            attester="insecure-sample",
        )
    )
    return [path, key]


def _development_key(state: Path) -> Path:
    """Make the key that signs the coordinator's sample evidence."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state / "insecure-development.key"
    path.touch(mode=0o600)
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def _raise_open_files() -> None:
    """Allow as many open files as this process may: each connected site has one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("FEDLEARN_LOG", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


if __name__ == "__main__":
    sys.exit(main())
