"""``fedlearn ledger``: show and verify the record of every decision.

Exit statuses: 0 success and, for ``verify``, intact; 2 damaged, with the entry named; 1 when
there is nothing to read or the input cannot be used.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from attestation.durable import write_durably
from fedlearn.cli.operator import operator_option
from fedlearn.cli.state.contributions import contribution_lines, run_named
from fedlearn.cli.state.ledger_source import (
    StateLedger,
    opened_ledger,
    refuse_both,
    remote_ledger,
    source_options,
)
from fedlearn.cli.state.unlock import Unlock, unlock_options
from fedlearn.errors import ConfigError, LedgerError, StoreError
from fedlearn.terminal.console import (
    REFUSED,
    Commands,
    Failure,
    json_option,
    line,
    print_json,
    printable,
)
from server.ledger import Entry, LedgerHead, VerifiedLedger
from server.store.state_binding import compare_bound

__all__ = ["group"]

_MAX_HEAD_BYTES: Final = 4096
_SHOWN: Final = 160
_FIRST: Final = ("job", "model", "site", "client", "round", "version", "phase", "reason")

Command = TypeVar("Command", bound=Callable[..., Any])


def _damage_is_an_answer(command: Callable[..., int | None]) -> Callable[..., int]:
    """Exit with 2 if the ledger is damaged, which is a result and not an error."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> int:
        try:
            return command(*args, **options) or 0
        except LedgerError as error:
            if error.entry is None:
                raise
            if options.get("as_json"):
                failure = Failure(code=error.code, message=str(error), hint=error.hint)
                print_json({"intact": False, "entry": error.entry, **failure.to_json()})
            else:
                click.echo(f"damaged: {printable(str(error))}", err=True)
            return REFUSED

    return run


@click.group(cls=Commands, name="ledger")
def group() -> None:
    """Show and verify the record of every decision."""


@group.command()
@source_options
@click.option("--kind", help="Only entries of this kind.")
@click.option(
    "--after", type=click.IntRange(0, 2**63 - 1), default=0, help="Skip the entries up to this one."
)
@click.option("--limit", type=click.IntRange(1), help="The largest number of entries.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@_damage_is_an_answer
def show(
    state: Path | None,
    operator: Path | None,
    kind: str | None,
    after: int,
    limit: int | None,
    as_json: bool,
) -> None:
    """Print the entries, oldest first. What is shown is not verified."""
    with opened_ledger(state, operator) as ledger:
        for entry in ledger.entries(after=after, kind=kind, limit=limit):
            if as_json:
                print_json(entry.to_json())
            else:
                line(_entry_text(entry))


@group.command()
@unlock_options
@operator_option
@click.option("--key", type=click.Path(path_type=Path), help="Public key (PEM) to verify with.")
@click.option(
    "--head", "head_text", metavar="FILE|SEQUENCE:HASH", help="A head that was kept elsewhere."
)
@json_option
@_damage_is_an_answer
def verify(
    unlock: Unlock | None,
    operator: Path | None,
    key: Path | None,
    head_text: str | None,
    as_json: bool,
) -> int:
    """Find any edit, deletion, insertion or reordering, and name the entry.

    Over your login, every entry is fetched and verified on this machine, under the key that the
    coordinator's CA signed. The head that is found is kept in the login: the ledger has to go on
    from it the next time.

    With --state, to detect entries that were removed at the end, and a replaced ledger, compare
    with the store (name what opens the state) or with --head. Keep the key outside of the state
    directory as well: with write access to it, both can be replaced.
    """
    expected = None if head_text is None else _read_head(head_text)
    if unlock is None:
        return _verify_remote(operator, key, expected, as_json)
    refuse_both(unlock.state, operator)
    found = StateLedger(unlock.state, key).verify(expect_head=expected)
    if unlock.given:
        with unlock.keys() as keys:
            try:
                compare_bound(unlock.state, keys)
            except StoreError as error:
                return _unlike_the_store(error, as_json)
    if as_json:
        print_json({**_verified_json(found), "store_checked": unlock.given})
        return 0
    _print_verified(found)
    if unlock.given:
        line("its end matches the sealed store")
    elif not found.head_checked:
        line("the end was compared neither with the store (--config) nor with a head (--head)")
    return 0


def _verify_remote(
    operator: Path | None, key: Path | None, expected: LedgerHead | None, as_json: bool
) -> int:
    with remote_ledger(operator, key) as ledger:
        found = ledger.verify(expect_head=expected)
    kept = ledger.kept
    if as_json:
        former = None if kept is None else str(kept)
        print_json({**_verified_json(found), "store_checked": False, "former_head": former})
    else:
        _print_verified(found)
        if kept is not None:
            line(f"it goes on from entry {kept.sequence}, which this login had verified")
        elif not ledger.unkept:
            line("the head is kept in the login: the ledger has to go on from it the next time")
    if ledger.unkept:
        click.echo(f"warning: {printable(ledger.unkept)}", err=True)
    return 0


def _verified_json(found: VerifiedLedger) -> dict[str, Any]:
    return {
        "intact": True,
        "entries": found.entries,
        "head": None if found.head is None else str(found.head),
        "head_checked": found.head_checked,
        "kinds": dict(found.kinds),
        "key": found.key_fingerprint,
    }


def _print_verified(found: VerifiedLedger) -> None:
    line(f"intact: {found.entries} entries, signed with key {found.key_fingerprint[:16]}")
    if found.head is not None:
        line(f"from {_time(found.first_time)} to {_time(found.last_time)}")
        line(f"head {found.head}")


def _unlike_the_store(error: StoreError, as_json: bool) -> int:
    """Report that store and ledger do not match, though each is intact."""
    if as_json:
        failure = Failure(code=error.code, message=str(error), hint=error.hint)
        print_json({"intact": False, "entry": None, **failure.to_json()})
    else:
        click.echo(f"damaged: {printable(str(error))}", err=True)
    return REFUSED


@group.command()
@source_options
@click.option("--out", type=click.Path(path_type=Path), help="Write the head file here.")
@json_option
@_damage_is_an_answer
def head(state: Path | None, operator: Path | None, out: Path | None, as_json: bool) -> None:
    """Print the head of the ledger: kept elsewhere, it shows whether entries were removed.

    Over your login, what was added to the head that the login keeps is verified first.
    """
    with opened_ledger(state, operator) as ledger:
        found = ledger.head()
    if found is None:
        raise LedgerError("the ledger is empty, so it has no head")
    if out is not None:
        write_durably(out, found.to_bytes(), mode=0o644)
    if as_json:
        print_json(json.loads(found.to_bytes()))
    else:
        line(str(found))


@group.command()
@source_options
@click.option("--job", required=True, help="Name of the job that made the model.")
@click.option("--version", type=click.IntRange(0), help="Version of the model.")
@click.option("--round", "round_", type=click.IntRange(0), help="The model after this round.")
@json_option
@_damage_is_an_answer
def contributions(
    state: Path | None,
    operator: Path | None,
    job: str,
    version: int | None,
    round_: int | None,
    as_json: bool,
) -> None:
    """List the contributions to a model: round, site, examples, digest, policy.

    Below the table is what admitted the clients: each set of measurements once. Registers that
    are zero, and claims of other jobs on the same machine, are in --json only.
    """
    with opened_ledger(state, operator) as ledger:
        run = run_named(ledger.entries, job)
        found = ledger.contributions(run, version=version, round=round_)
    if as_json:
        print_json({"contributions": [item.to_json() for item in found]})
        return
    for text in contribution_lines(found):
        line(text)


def _read_head(text: str) -> LedgerHead:
    path = Path(text)
    try:
        if not path.is_file() and ":" in text:
            return LedgerHead.parse(text.encode())
        with path.open("rb") as file:
            return LedgerHead.parse(file.read(_MAX_HEAD_BYTES + 1))
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ConfigError(reason, where="--head", key=text) from None
    except LedgerError as error:
        raise ConfigError(str(error), where="--head", key=text, hint=error.hint) from None


def _time(milliseconds: int) -> str:
    try:
        moment = dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _entry_text(entry: Entry) -> str:
    text = f"{entry.sequence:>7}  {_time(entry.time)}  {entry.kind:<11}  {_body_text(entry.body)}"
    return printable(text)


def _body_text(body: Mapping[str, Any]) -> str:
    names = [name for name in _FIRST if name in body]
    names += [name for name in sorted(body) if name not in _FIRST]
    words = []
    for name in names:
        value = body[name]
        words.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    text = " ".join(words)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
