"""What all audits have in common: which job, and where result and figure go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedlearn import extras
from fedlearn.config import write_new
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import json_option, line, print_json

if TYPE_CHECKING:
    from fedlearn.audit.target import AuditTarget

__all__ = ["Audit", "audit_options"]

_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The options of every audit."""

    file: Path
    data: Path | None
    spec: Path | None
    out: Path | None
    kind: str
    format: str
    seed: int
    as_json: bool

    def target(self) -> AuditTarget:
        """Read the job, and check that the folder for the results is free.

        :raises ConfigError: when something is wrong, before anything runs.
        """
        from fedlearn.audit.target import AuditTarget

        extras.require("audit", needed_for="an audit")
        if self.out is not None and self.out.exists():
            raise ConfigError(
                "exists", where=str(self.out), hint="name another folder; nothing was written"
            )
        return AuditTarget(self.file, data=self.data, spec=self.spec)

    def progress(self, text: str) -> None:
        """Show what runs, on stderr."""
        if not self.as_json:
            click.echo(f"  {text}", err=True)

    def finish(self, result: Mapping[str, Any], figure: bytes, *, bad: bool) -> None:
        """Write result and figure, and print them.

        :param bad: the audit found what it looks for: a claim that is refuted.
        """
        folder = self.out if self.out is not None else _next(Path("audits"), self.kind)
        text = json.dumps(result, indent=2, sort_keys=True, allow_nan=False) + "\n"
        write_new(folder / "result.json", text)
        picture = folder / f"figure.{self.format}"
        picture.write_bytes(figure)
        if self.as_json:
            print_json({**result, "folder": str(folder)})
            return
        for sentence in str(result["verdict"]).split("; "):
            line(sentence, style="red" if bad else "", bold=bad)
        if result.get("limit"):
            line(f"limit: {result['limit']}", style="yellow")
        line(str(result["note"]), style="yellow")
        line(f"result and figure are in {folder}")


def _next(root: Path, kind: str) -> Path:
    """Return ``root/kind-N`` with the next N."""
    number = 1
    while (root / f"{kind}-{number}").exists():
        number += 1
    return root / f"{kind}-{number}"


def audit_options(kind: str) -> Callable[[_T], _T]:
    """Add the options of every audit; the command gets them as one :class:`Audit`."""

    def decorate(function: _T) -> _T:
        def command(
            file: Path,
            data: Path | None,
            spec: Path | None,
            out: Path | None,
            format: str,  # noqa: A002
            seed: int,
            as_json: bool,
            **options: Any,
        ) -> Any:
            audit = Audit(
                file=file, data=data, spec=spec, out=out, kind=kind, format=format, seed=seed,
                as_json=as_json,
            )  # fmt: skip
            return function(audit, **options)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__dict__.update(function.__dict__)
        for option in reversed(
            (
                click.argument("file", type=click.Path(path_type=Path), default=Path("job.toml")),
                click.option(
                    "--data",
                    type=click.Path(path_type=Path, file_okay=False),
                    default=None,
                    help="Folder with one folder of data for each site; 'data' next to FILE by "
                    "default.",
                ),
                click.option(
                    "--spec",
                    type=click.Path(path_type=Path, dir_okay=False),
                    default=None,
                    help="What the audit must know of the app; audit.toml next to FILE by default.",
                ),
                click.option(
                    "--out",
                    type=click.Path(path_type=Path, file_okay=False),
                    default=None,
                    help=f"Folder for result.json and the figure; audits/{kind}-N by default.",
                ),
                click.option(
                    "--format",
                    type=click.Choice(("png", "pdf", "svg")),
                    default="png",
                    show_default=True,
                    help="Of the figure.",
                ),
                click.option(
                    "--seed",
                    type=click.IntRange(0, 2**31 - 1),
                    default=0,
                    show_default=True,
                    help="Of the audit and of its runs: the same seed gives the same result.",
                ),
                json_option,
            )
        ):
            option(command)
        return command  # type: ignore[return-value]

    return decorate
