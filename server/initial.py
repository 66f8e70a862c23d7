"""``fedlearn-server init``: the configuration of a new coordinator, its keys and first operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from fedlearn import __version__
from fedlearn.config.attesterfile import ATTESTER_KINDS
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import config_option, json_option, line, print_json
from fedlearn.terminal.options import SAMPLE_KEY_FLAG, sample_key_option, sha256

__all__ = ["init"]

_LISTENERS: Final = ("gate", "control", "fleet")
_HEAD: Final = f"""\
# One coordinator, as `fedlearn-server init` of fedlearn {__version__} wrote it. A key that is
# commented out has the value that it shows. Check changes with `fedlearn doctor --server FILE`.

"""
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What the command line states about a new coordinator."""

    state: Path | None
    trust_domain: str | None
    host: str | None
    port: int | None
    advertise: str | None
    tpm: bool
    passphrase_file: Path | None
    recovery_key: Path | None
    attester: str | None
    policy_keys: tuple[bytes, ...]
    sample_keys: tuple[bytes, ...]
    insecure: bool

    def flags(self) -> list[str]:
        """Return the flags that only a new configuration can follow."""
        given = {
            "--state": self.state,
            "--trust-domain": self.trust_domain,
            "--host": self.host,
            "--port": self.port,
            "--advertise": self.advertise,
            "--tpm": self.tpm,
            "--passphrase-file": self.passphrase_file,
            "--recovery-key": self.recovery_key,
            "--attester": self.attester,
            "--policy-key": self.policy_keys,
            SAMPLE_KEY_FLAG: self.sample_keys,
            "--insecure-development": self.insecure,
        }
        return [flag for flag, value in given.items() if value]


@click.command()
@config_option("server.toml", "The coordinator's configuration; written where there is none.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Its folder.  [default: state, next to the configuration]",
)
@click.option("--trust-domain", help="Of its certificates.  [default: fedlearn.local]")
@click.option("--host", help="The address of this machine to listen on.  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(1, 65_533),
    help="The first of three ports: gate, control, fleet.  [default: 9443]",
)
@click.option("--advertise", metavar="HOST", help="The name or address that others connect to.")
@click.option("--tpm", is_flag=True, help="Keep the root key under this machine's TPM.")
@click.option(
    "--passphrase-file", type=_FILE, help="Keep the root key under the passphrase in this file."
)
@click.option(
    "--recovery-key", type=_FILE, help="Keep the root key for this public key too (X25519, PEM)."
)
@click.option(
    "--attester", type=click.Choice(ATTESTER_KINDS), help="What proves it.  [default: auto]"
)
@click.option(
    "--policy-key",
    "policy_keys",
    multiple=True,
    callback=sha256,
    metavar="SHA256",
    help="Refuse policies that none of these operators' keys signed.",
)
@sample_key_option("this", multiple=True)
@click.option(
    "--insecure-development",
    "insecure",
    is_flag=True,
    help="Without a TEE: a plain key file, sample evidence of a development key that is made, and "
    "without --operator-csr the operator's key here.",
)
@click.option(
    "--operator-csr",
    "csr",
    type=_FILE,
    default=None,
    metavar="FILE",
    help="The first operator's request, as `fedlearn operator request NAME` makes it.",
)
@click.option(
    "--insecure-operator-key-here",
    "key_here",
    is_flag=True,
    help="Make the operator's key on this machine: those who run the coordinator then hold it.",
)
@click.option(
    "--install-login",
    "install",
    is_flag=True,
    help="Make the login with that key the one that `fedlearn` uses here without --operator.",
)
@json_option
def init(
    path: Path, csr: Path | None, key_here: bool, install: bool, as_json: bool, **given: Any
) -> None:
    """Initialize a coordinator: its keys, CA, ledger and first operator.

    Writes the configuration too where there is none, with every key that it may have.
    """
    from fedlearn.identity.login import OperatorLogin, ca_pin, default_folder
    from server.config import ServerConfig
    from server.state_directory import GRANT_FILE, initialize

    if csr is not None and key_here:
        raise click.UsageError("--operator-csr and --insecure-operator-key-here exclude each other")
    if csr is not None and install:
        raise click.UsageError("--install-login is for a key that is made here")
    if install and default_folder().exists():
        raise ConfigError(
            "a login is installed there already",
            where=str(default_folder()),
            key="--install-login",
            hint="leave the flag out, and name the new login with --operator",
        )
    answers = _Answers(**given)
    if csr is None and not key_here and not answers.insecure:
        raise ConfigError(
            "the first operator's request is missing",
            key="--operator-csr",
            hint="`fedlearn operator request NAME` makes key and request on the operator's "
            "machine; --insecure-operator-key-here makes the key on this one",
        )
    written = _write(path, answers)
    try:
        config = ServerConfig.load(path)
        control = config.advertised("control", config.listen.control)
        operator = initialize(
            config, now=datetime.now(UTC), control_address=control, operator_csr=csr
        )
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    if install:
        OperatorLogin.load(operator).save(default_folder())
    pin = ca_pin((config.state / "ca.pem").read_bytes())
    sample_key = _sample_key(config)
    if as_json:
        print_json(
            {
                "state": str(config.state),
                "operator": str(operator),
                "config": str(path),
                "ca_pin": pin,
                "insecure_sample_key": sample_key,
            }
        )
        return
    if written:
        line(f"wrote {path}; every key that it may have is in it")
    line(f"initialized in {config.state}", style="green")
    if sample_key:
        line("INSECURE: its evidence is a sample, which proves nothing; sites name its key:")
        line(f"       fedlearn-edge init {SAMPLE_KEY_FLAG} {sample_key}")
    line(f"next:  fedlearn-server run --config {path}")
    if operator.name == GRANT_FILE:
        line(f"then:  send {operator} to the operator, and the CA's pin by another channel:")
        line(f"       fedlearn operator login {operator.name} --ca-pin {pin}")
        return
    named = "" if install else f" --operator {operator}"
    line(f"then:  fedlearn site token NAME{named}")
    line(f"INSECURE: the operator's key was made on this machine, in {operator}", style="yellow")


def _write(path: Path, answers: _Answers) -> list[Path]:
    """Write the configuration where there is none; return the files that were written.

    :raises ConfigError: when the answers are incomplete or contradict each other, or there is a
        configuration that they would have to change.
    """
    from attestation.config import commented
    from fedlearn import config
    from fedlearn.checks.files import new_secret
    from fedlearn.config.development_key import DEVELOPMENT_KEY, make_key
    from server.config import ServerConfig

    if path.exists():
        if flags := answers.flags():
            raise ConfigError(
                f"exists, and {', '.join(flags)} would change it",
                where=str(path),
                hint="edit the file and leave the flags out, or name another one with --config",
            )
        return []
    text = _HEAD + commented(ServerConfig, _table(path, answers))
    found = config.read(ServerConfig, text, where=str(path), base=path.parent)
    if (secret := answers.passphrase_file) is not None and not secret.is_file():
        raise ConfigError(
            "does not exist",
            where=str(secret),
            key="--passphrase-file",
            hint=f"make one: {new_secret(secret)}",
        )
    written = [path]
    if found.attester.kind == "insecure-sample":
        key = found.state / DEVELOPMENT_KEY
        written += [] if key.exists() else [key, key.with_suffix(".pub.pem")]
        make_key(found.state)
    config.write_new(path, text)
    return written


def _table(path: Path, answers: _Answers) -> dict[str, Any]:
    """Return what the answers put into the configuration ``path``."""
    from fedlearn import config

    table: dict[str, Any] = {
        "state": config.relative(answers.state or path.parent / "state", path),
        "trust_domain": answers.trust_domain or "fedlearn.local",
        "keys": _keys(path, answers),
    }
    host, port = answers.host or "127.0.0.1", answers.port or 9443
    ports = {name: number for number, name in enumerate(_LISTENERS, port)}
    table["listen"] = {name: _address(host, number) for name, number in ports.items()}
    if answers.advertise:
        table["advertise"] = {n: _address(answers.advertise, p) for n, p in ports.items()}
    kind = answers.attester or ("insecure-sample" if answers.insecure else "auto")
    table["attester"] = {"kind": kind}
    trust: dict[str, Any] = {}
    if answers.sample_keys:
        trust["insecure_sample_keys"] = [key.hex() for key in answers.sample_keys]
    if answers.policy_keys:
        trust["policy_keys"] = [key.hex() for key in answers.policy_keys]
    return {**table, "trust": trust}


def _keys(path: Path, answers: _Answers) -> Mapping[str, Any]:
    from fedlearn import config

    protect: list[str] = []
    keys: dict[str, Any] = {"protect": protect}
    if answers.tpm:
        protect.append("tpm-policy")
    if answers.recovery_key is not None:
        protect.append("recovery-key")
        keys["recovery_key"] = config.relative(answers.recovery_key, path)
    if answers.passphrase_file is not None:
        protect.append("passphrase")
        keys["passphrase_file"] = config.relative(answers.passphrase_file, path)
    if not protect and answers.insecure:
        protect.append("insecure-plain-key-file")
    if not protect:
        raise ConfigError(
            "does not exist, and nothing states what keeps the root key of a new coordinator",
            where=str(path),
            hint="give --tpm, --passphrase-file or --recovery-key, or try things out with "
            "--insecure-development",
        )
    return keys


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _sample_key(config: Any) -> str:
    """Return the digest of the development key of the coordinator; empty where it has none."""
    from fedlearn.config.attester import sample_key_digest

    digest = sample_key_digest(config.attester, state=config.state)
    return digest.hex() if digest is not None else ""
