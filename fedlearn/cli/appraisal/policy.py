"""``fedlearn policy``: apply, explain, check, draft and sign appraisal policies."""

from __future__ import annotations

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from attestation.errors import EvidenceError, VerificationError
from attestation.policy.draft import draft_policy
from attestation.policy.launch import launch_errors
from attestation.policy.lint import lint_policy
from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from attestation.policy.sign import (
    MAX_SIGNATURE_BYTES,
    PrivateKey,
    PublicKey,
    operator_key_digest,
    sign_policy,
    verify_policy,
)
from fedlearn.cli.appraisal.inputs import Request, evidence_options, pick, read_policy, write_new
from fedlearn.cli.appraisal.reference import reference
from fedlearn.cli.appraisal.verdict import Verdict, judge, print_explanation, print_summary
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import (
    ERROR,
    REFUSED,
    Commands,
    Noun,
    json_option,
    line,
    print_json,
    printable,
)

__all__ = ["group"]

_MAX_KEY_BYTES = 16 * 1024
_PATH = click.Path(path_type=Path)


@click.group(
    cls=Commands,
    nouns={
        "keygen": Noun(
            module="fedlearn.cli.appraisal.keygen",
            attribute="keygen",
            summary="Make the key pair with which an operator signs policies.",
        )
    },
)
def group() -> None:
    """Appraisal policies: which genuine evidence is affirmed.

    Exit status: 0 when the result is affirming, 2 when it is refused, 1 when an input cannot
    be used.
    """


_policy_option = click.option(
    "--policy", "policy_file", type=_PATH, required=True, metavar="FILE", help="The policy."
)
_node_option = click.option(
    "--node", default=None, metavar="NAME", help="The node from which the evidence is expected."
)


@group.command()
@evidence_options()
@_policy_option
@_node_option
@json_option
@click.pass_context
def verify(
    context: click.Context, request: Request, policy_file: Path, node: str | None, as_json: bool
) -> None:
    """Verify evidence and apply a policy to it."""
    verdict = _judged(request, policy_file, node)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_summary(verdict)
    context.exit(verdict.exit_status)


@group.command()
@evidence_options()
@_policy_option
@_node_option
@click.pass_context
def explain(context: click.Context, request: Request, policy_file: Path, node: str | None) -> None:
    """Like verify, with every step: what was expected and found, and what to do."""
    verdict = _judged(request, policy_file, node)
    print_explanation(verdict)
    context.exit(verdict.exit_status)


@group.command()
@click.argument("file", type=_PATH, required=False)
@click.option("--policy", "policy_file", type=_PATH, metavar="FILE", help="The policy.")
@click.option("--signature", type=_PATH, metavar="FILE", help="Check this signature as well.")
@click.option(
    "--operator-key",
    "operator_keys",
    type=_PATH,
    multiple=True,
    metavar="FILE",
    help="Public key (PEM) of an operator whose signature is accepted; repeatable.",
)
@json_option
@click.pass_context
def lint(
    context: click.Context,
    file: Path | None,
    policy_file: Path | None,
    signature: Path | None,
    operator_keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check a policy file, and report what should be reviewed.

    A policy that pins no launch identity of a TEE that it accepts is an error.
    """
    path = pick(file, policy_file, "policy")
    policy = read_policy(path)
    errors = launch_errors(policy)
    warnings = lint_policy(policy, now=datetime.now(UTC))
    signer = _check_signature(policy, signature, operator_keys)
    if as_json:
        print_json(
            {
                "name": policy.name,
                "version": policy.version,
                "digest": policy.digest.hex(),
                "signer": signer,
                "errors": list(errors),
                "warnings": list(warnings),
            }
        )
        context.exit(ERROR if errors else 0)
    line(f"{path}: policy {printable(policy.name)}, version {policy.version}")
    line(f"digest {policy.digest.hex()}")
    if signer:
        line(f"signed by {signer}")
    for warning in warnings:
        line(f"warning: {printable(warning)}", style="yellow")
    for error in errors:
        line(f"error: {printable(error)}", style="red")
    context.exit(ERROR if errors else 0)


@group.command()
@evidence_options("--from-evidence")
@click.option("--name", default="draft", metavar="TEXT", help="Name of the policy.")
@click.option("--node", default="", metavar="NAME", help="Pin the hardware to this node.")
@click.option("--output", type=_PATH, default=None, metavar="FILE", help="Where to write it.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.pass_context
def init(
    context: click.Context, request: Request, name: str, node: str, output: Path | None, force: bool
) -> None:
    """Write a commented policy that pins the values of this evidence."""
    _warn(request.warnings)
    try:
        claims = request.verify()
    except VerificationError as error:
        click.echo(f"refused: {printable(str(error))}", err=True)
        if error.hint:
            click.echo(f"hint: {printable(error.hint)}", err=True)
        click.echo("hint: only genuine evidence is pinned; no file was written", err=True)
        context.exit(REFUSED)
    draft = draft_policy(claims, source=request.source, now=request.now, name=name, node=node)
    parse_policy(draft.text.encode(), str(output or "draft"))
    if output is None:
        click.echo(draft.text, nl=False)
    else:
        write_new(output, draft.text.encode(), force=force)
        click.echo(f"wrote {output}")
    for note in draft.notes:
        click.echo(f"note: {printable(note)}", err=True)


group.add_command(reference)


@group.command()
@click.argument("file", type=_PATH, required=False)
@click.option("--policy", "policy_file", type=_PATH, metavar="FILE", help="The policy.")
@click.option(
    "--key",
    type=_PATH,
    required=True,
    metavar="FILE",
    help="The operator's private key (PEM): Ed25519, or ECDSA on P-256.",
)
@click.option(
    "--output", type=_PATH, default=None, metavar="FILE", help="Default: FILE.sig beside it."
)
@click.option("--force", is_flag=True, help="Replace an existing signature.")
@json_option
def sign(
    file: Path | None,
    policy_file: Path | None,
    key: Path,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Sign a policy with an operator's key, in a file beside it."""
    path = pick(file, policy_file, "policy")
    policy = read_policy(path)
    private = _private_key(key)
    target = output or path.with_name(f"{path.name}.sig")
    write_new(target, sign_policy(policy, private), force=force)
    signer = operator_key_digest(private.public_key()).hex()
    if as_json:
        print_json(
            {
                "file": str(target),
                "version": policy.version,
                "digest": policy.digest.hex(),
                "signer": signer,
            }
        )
        return
    line(f"wrote {target}: version {policy.version}, digest {policy.digest.hex()}")
    line(f"signed by {signer}")


def _judged(request: Request, policy_file: Path, node: str | None) -> Verdict:
    policy = read_policy(policy_file)
    _warn(request.warnings)
    try:
        return judge(request, policy, node=node)
    except EvidenceError as error:
        raise ConfigError(str(error), where=request.source, hint=error.hint) from None


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)


def _check_signature(
    policy: AppraisalPolicy, signature: Path | None, operator_keys: tuple[Path, ...]
) -> str | None:
    if signature is None and not operator_keys:
        return None
    if signature is None or not operator_keys:
        raise ConfigError(
            "a signature is checked against an operator's key",
            hint="give both --signature FILE and --operator-key FILE",
        )
    keys = [_public_key(path) for path in operator_keys]
    data = file_bytes(signature, limit=MAX_SIGNATURE_BYTES, what="signature")
    return verify_policy(policy, data, keys=keys).hex()


def _private_key(path: Path) -> PrivateKey:
    data = file_bytes(path, limit=_MAX_KEY_BYTES, what="key")
    password = None
    if b"ENCRYPTED" in data:
        if not sys.stdin.isatty():
            raise ConfigError(
                "is encrypted, and there is no terminal to ask for its passphrase on",
                where=str(path),
            )
        password = getpass.getpass(f"Passphrase of {path}: ").encode()
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            "is not a private key in PEM, or the passphrase is wrong",
            where=str(path),
            hint="`fedlearn policy keygen --out NEW.pem` makes a pair, and overwrites no file",
        ) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigError("is neither an Ed25519 key nor one on P-256", where=str(path))


def _public_key(path: Path) -> PublicKey:
    data = file_bytes(path, limit=_MAX_KEY_BYTES, what="key")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            "is not a public key in PEM",
            where=str(path),
            hint="name the public half that `fedlearn policy keygen` wrote beside the private one",
        ) from None
    if isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        return key
    raise ConfigError("is neither an Ed25519 key nor one on P-256", where=str(path))
