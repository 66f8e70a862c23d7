"""``fedlearn-edge init``: the configuration of a new site, and its enrollment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from fedlearn import __version__
from fedlearn.config.attesterfile import ATTESTER_KINDS
from fedlearn.errors import ConfigError
from fedlearn.job.placement import LAUNCHERS
from fedlearn.terminal.console import config_option, json_option, line, print_json
from fedlearn.terminal.options import SAMPLE_KEY_FLAG, sample_key_option, sha256

__all__ = ["init"]

_HEAD: Final = f"""\
# One site, as `fedlearn-edge init` of fedlearn {__version__} wrote it. A key that is commented
# out has the value that it shows. Check changes with `fedlearn-edge check --config FILE`.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What the command line states about a new site."""

    state: Path | None
    data: tuple[tuple[str, str], ...]
    claims: tuple[tuple[str, str], ...]
    launcher: str | None
    image: str
    runtime_class: str
    workload: str | None
    attester: str | None
    bundles: tuple[bytes, ...]
    other_bundles: str | None
    approval: str | None
    app_logs: str | None
    policy_keys: tuple[bytes, ...]
    max_epsilon: float | None
    sample_keys: tuple[bytes, ...]
    insecure: bool


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> Any:
    found = tuple((name, place) for name, _, place in (text.partition("=") for text in value))
    for name, place in found:
        if not name or not place:
            raise click.BadParameter(f"write {param.metavar}, such as medpar=/srv/medpar")
    names = [name for name, _ in found]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise click.BadParameter(f"names {repeated!r} twice")
    return found


@click.command()
@config_option("site.toml", "The site's new configuration.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, allow_dash=True),
    default=None,
    help="Enroll this machine too, with the join token in this file, or - for standard input.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Its folder.  [default: state, next to the configuration]",
)
@click.option(
    "--data",
    multiple=True,
    callback=_pairs,
    metavar="NAME=PATH",
    help="A data set, by the name that jobs use. Repeat it for more.",
)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    callback=_pairs,
    metavar="NAME=CLAIM",
    help="The same in a cluster: the PersistentVolumeClaim that holds it.",
)
@click.option(
    "--launcher", type=click.Choice(LAUNCHERS), help="What starts clients.  [default: process]"
)
@click.option("--image", default="", help="kubernetes: the client's image, by digest.")
@click.option("--runtime-class", default="", help="kubernetes: of confidential containers.")
@click.option("--workload", default=None, help="kubernetes: what a client is.")
@click.option(
    "--attester", type=click.Choice(ATTESTER_KINDS), help="What proves it.  [default: auto]"
)
@click.option(
    "--accept-bundle",
    "bundles",
    multiple=True,
    callback=sha256,
    metavar="SHA256",
    help="Run this code, as `fedlearn job validate` prints its digest. Repeat it for more.",
)
@click.option(
    "--other-bundles",
    type=click.Choice(("refuse", "ask", "insecure-accept")),
    help="What to do with other code.  [default: refuse]",
)
@click.option(
    "--approval",
    type=click.Choice(("automatic", "manual")),
    help="manual: a person here approves every job.  [default: automatic]",
)
@click.option(
    "--app-logs",
    type=click.Choice(("off", "sealed")),
    help="sealed: a job's owner may read what its app writes here.  [default: off]",
)
@click.option(
    "--policy-key",
    "policy_keys",
    multiple=True,
    callback=sha256,
    metavar="SHA256",
    help="Refuse jobs whose policy none of these keys signed.",
)
@click.option(
    "--max-epsilon", type=float, help="Refuse jobs without differential privacy, or with less."
)
@sample_key_option("the coordinator's", multiple=True)
@click.option(
    "--insecure-development",
    "insecure",
    is_flag=True,
    help="Without a TEE: sample evidence of a development key that is made here.",
)
@json_option
def init(path: Path, token_file: Path | None, as_json: bool, **given: Any) -> None:
    """Write a site's configuration, with every key that it may have, and enroll the site.

    With --token-file the site's key is made in its folder and stays there. Nothing is written
    where something is wrong, or the coordinator refuses the token.
    """
    from attestation.config import commented
    from edge.config.site import SiteConfig
    from edge.protocol.enrollment import check_place, read_token, redeem
    from fedlearn import config
    from fedlearn.config.development_key import DEVELOPMENT_KEY, make_key

    if path.exists():
        raise ConfigError(
            "exists; nothing was written",
            where=str(path),
            hint="edit it, or name another file with --config",
        )
    answers = _Answers(**given)
    text = _HEAD + commented(SiteConfig, _table(path, answers))
    found = config.read(SiteConfig, text, where=str(path), base=path.parent)
    for name, place in answers.data:
        if not Path(place).exists():
            raise ConfigError("does not exist", where=place, key=f"--data {name}")
    token = read_token(token_file) if token_file is not None else ""
    if token:
        check_place(token, found.state)
    undo: list[Callable[[], None]] = []
    sample_key, identity = "", None
    try:
        if found.attester.kind == "insecure-sample":
            key = found.state / DEVELOPMENT_KEY
            if not key.exists():
                undo += [
                    lambda: key.unlink(missing_ok=True),
                    lambda: key.with_suffix(".pub.pem").unlink(missing_ok=True),
                ]
            sample_key = make_key(found.state).hex()
        config.write_new(path, text)
        undo.append(lambda: path.unlink(missing_ok=True))
        if token:
            identity = redeem(token, found.state)
    except BaseException:
        for step in undo:
            step()
        if found.state.is_dir() and not any(found.state.iterdir()):
            found.state.rmdir()
        raise
    if as_json:
        print_json(
            {
                "config": str(path),
                "state": str(found.state),
                "site": identity.site if identity is not None else None,
                "pending": identity.pending if identity is not None else None,
                "insecure_sample_key": sample_key,
            }
        )
        return
    line(f"wrote {path}; every key that it may have is in it", style="green")
    if sample_key:
        line(
            "INSECURE: its evidence is a sample, which proves nothing about hardware",
            style="yellow",
        )
    trust = f" {SAMPLE_KEY_FLAG} {sample_key}" if sample_key else ""
    if identity is None:
        line(f"next:  fedlearn site enroll --token-file FILE --state {found.state}")
        if sample_key:
            line(f"then the operator:  fedlearn site approve NAME{trust}")
        return
    if identity.pending:
        line(f"site {identity.site} waits for approval; the operator runs:")
        line(f"       fedlearn site approve {identity.site}{trust}")
    else:
        line(f"site {identity.site} is enrolled")
    line(f"next:  fedlearn-edge run --config {path}")


def _table(path: Path, answers: _Answers) -> dict[str, Any]:
    """Return what the answers put into the configuration ``path``."""
    from fedlearn import config

    data: dict[str, Any] = {
        name: {"path": config.relative(Path(place), path)} for name, place in answers.data
    }
    for name, claim in answers.claims:
        data[name] = {**data.get(name, {}), "claim": claim}
    hexadecimal = {
        "bundles": [digest.hex() for digest in answers.bundles],
        "policy_keys": [digest.hex() for digest in answers.policy_keys],
    }
    kind = answers.attester or ("insecure-sample" if answers.insecure else "auto")
    table: dict[str, Any] = {
        "state": config.relative(answers.state or path.parent / "state", path),
        "launcher": {"kind": answers.launcher or "process"},
        "attester": {"kind": kind},
        "data": data,
        "accept": _given(
            **hexadecimal,
            other_bundles=answers.other_bundles,
            approval=answers.approval,
            app_logs=answers.app_logs,
        ),
        "trust": _given(insecure_sample_keys=[key.hex() for key in answers.sample_keys]),
    }
    if answers.max_epsilon is not None:
        table["privacy"] = {"required": True, "max_epsilon": answers.max_epsilon}
    cluster = _given(
        image=answers.image, runtime_class=answers.runtime_class, workload=answers.workload
    )
    return {**table, "kubernetes": cluster} if cluster else table


def _given(**values: Any) -> Mapping[str, Any]:
    return {key: value for key, value in values.items() if value}
