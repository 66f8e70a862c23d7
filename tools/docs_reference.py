"""The parts of the documentation that are generated from the code, as Markdown.

A line ``<!-- generated: NAME ARGUMENT -->`` of a page is the place of one; :data:`GENERATED` has
the names. ``tools/docs_hooks.py`` inserts them when the site is built, so they are not stored.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from docs_docstrings import inline
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from attestation.config import describe
from attestation.policy.model import AppraisalPolicy
from edge.config.site import SiteConfig
from fedlearn.audit.target import AuditSpec
from fedlearn.data.setup import DataSetup
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.job import events, strategies
from fedlearn.job.spec import JobSpec
from fedlearn.simulation.virtual_time.setup import TimeSetup
from fedlearn.terminal.examples import EXAMPLES
from server import metrics
from server.config import ServerConfig

__all__ = ["GENERATED", "Unknown", "fill"]

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = "fedlearn/wire/fedlearn.proto"
MODELS: Final[Mapping[str, type]] = {
    "audit": AuditSpec,
    "data": DataSetup,
    "experiment": ExperimentSpec,
    "job": JobSpec,
    "policy": AppraisalPolicy,
    "server": ServerConfig,
    "site": SiteConfig,
    "time": TimeSetup,
}
PROGRAMS: Final = {
    "fedlearn": ("fedlearn.cli", "main"),
    "fedlearn-server": ("server.main", "main"),
    "fedlearn-edge": ("edge.main", "main"),
}
T = TypeVar("T")

_MARK: Final = re.compile(r"^<!-- generated: ([a-z]+)(?: ([\w-]+))? -->$", re.MULTILINE)


class Unknown(Exception):
    """A page names a part that does not exist; the text lists those that do."""


def fill(markdown: str) -> str:
    """Return a page with the generated part in the place of each mark.

    :raises Unknown: for a mark with an unknown name or argument.
    """

    def made(match: re.Match[str]) -> str:
        name, argument = match[1], match[2]
        if name not in GENERATED:
            raise Unknown(f"nothing is generated as {name!r}; there are {', '.join(GENERATED)}")
        return GENERATED[name](*filter(None, [argument]))

    return _MARK.sub(made, markdown)


def _named(known: Mapping[str, T], name: str) -> T:
    if name not in known:
        raise Unknown(f"there is no {name!r} to list; there are {', '.join(known)}")
    return known[name]


# --- the command line -----------------------------------------------------------------


def command_line(program: str) -> str:
    """Return every command of a program, with its arguments and options."""
    module, attribute = _named(PROGRAMS, program)
    command: click.Command = getattr(importlib.import_module(module), attribute)
    context = click.Context(command, info_name=program)
    return "\n\n".join(_command(command, context, level=2))


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}"
    yield from _help(command)
    if isinstance(command, click.Group):
        yield from _options(command, context)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                inner = click.Context(below, info_name=name, parent=context)
                yield from _command(below, inner, min(level + 1, 4))
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```"
    yield from _options(command, context)
    if example := EXAMPLES.get(context.command_path):
        yield f"```sh\n{example}\n```"


def _help(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of a help text; those that click does not wrap become code."""
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        if paragraph.lstrip().startswith("\b"):
            yield f"```text\n{paragraph.lstrip().removeprefix(chr(8)).strip(chr(10))}\n```"
        elif paragraph:
            yield _prose(paragraph)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and parameter.opts[0] not in ("-h", "--help"):
            record = parameter.get_help_record(context)
            if record is not None:
                rows.append((_code(record[0]), _prose(record[1])))
    if rows:
        yield _table(("option", "meaning"), rows)


# --- files ----------------------------------------------------------------------------


def keys(file: str) -> str:
    """Return the keys of a file, one table for each of its tables."""
    rows: dict[str, list[tuple[str, ...]]] = {"": []}
    heads = {"": ""}
    for item in describe(_named(MODELS, file)):
        if item.contents:
            rows[item.contents] = []
            heads[item.contents] = f"{_heading(item.contents)}\n\n{_prose(item.meaning)}"
            continue
        if item.table not in rows:
            rows[item.table] = []
            heads[item.table] = _heading(item.table)
        default = "required" if item.default is None else item.default and _code(item.default)
        rows[item.table].append((f"`{item.key}`", _prose(item.type), default, _prose(item.meaning)))
    parts = []
    for table, found in rows.items():
        parts.append(heads[table])
        if found:
            parts.append(_table(("key", "value", "default", "meaning"), found))
    return "\n\n".join(filter(None, parts))


def _heading(table: str) -> str:
    name = table.replace("[]", "")
    return f"### `[[{name}]]`" if table.endswith("[]") else f"### `[{name}]`"


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


# --- events, metrics, strategies ------------------------------------------------------


def event_kinds() -> str:
    """Return the kinds of events with their fields."""
    parts = []
    for name, kind in events.KINDS.items():
        hints = typing.get_type_hints(kind)
        rows = [
            (f"`{field.name}`", _type_name(hints[field.name]), "yes" if _required(field) else "no")
            for field in dataclasses.fields(kind)
        ]
        final = " It is the last event of its run." if kind.final else ""
        text = f"{_prose(inspect.getdoc(kind) or '')}{final}"
        parts.append(f"### `{name}`\n\n{text}\n\n{_table(('field', 'type', 'always'), rows)}")
    return "\n\n".join(parts)


def _type_name(hint: Any) -> str:
    names = {str: "text", int: "whole number", float: "number"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is tuple:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    arguments = typing.get_args(hint)
    return f"object of {names[arguments[1]]}" if arguments[-1:] == (float,) else "object"


def counts() -> str:
    """Return the metrics of a coordinator."""
    return _table(
        ("metric", "type", "label", "meaning"),
        [
            (f"`{item.name}`", item.kind, f"`{item.label}`" if item.label else "", item.help)
            for item in metrics.METRICS
        ],
    )


def strategy_options() -> str:
    """Return the strategies that a job may name."""
    return _table(
        ("strategy", "options", "with `[privacy]`"),
        [
            (
                f"`{name}`",
                ", ".join(f"`{option}`" for option in options),
                "yes" if name in {strategies.APP, *strategies.MEAN_FAMILY} else "no",
            )
            for name, options in strategies.STRATEGIES.items()
        ],
    )


# --- the wire -------------------------------------------------------------------------


def wire() -> str:
    """Return the services and messages of the ``.proto`` with their comments."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "set"
        arguments = ["protoc", f"-I{ROOT}", f"--descriptor_set_out={target}"]
        if protoc.main([*arguments, "--include_source_info", PROTO]) != 0:
            raise Unknown(f"{PROTO} cannot be compiled")
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    (file,) = files.file
    comments = {tuple(at.path): _comment(at) for at in file.source_code_info.location}
    parts = ["## Services"]
    for index, service in enumerate(file.service):
        at = (6, index)
        rows = [
            (
                f"`{method.name}`",
                _message(method.input_type, streamed=method.client_streaming),
                _message(method.output_type, streamed=method.server_streaming),
                comments.get((*at, 2, number), ""),
            )
            for number, method in enumerate(service.method)
        ]
        parts += [f"### {service.name}", comments.get(at, "")]
        parts.append(_table(("call", "takes", "returns", "meaning"), rows))
    parts.append("## Messages")
    for index, message in enumerate(file.message_type):
        parts += _message_parts(message, message.name, (4, index), comments)
    return "\n\n".join(filter(None, parts))


def _message_parts(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    at: tuple[int, ...],
    comments: Mapping[tuple[int, ...], str],
) -> Iterator[str]:
    yield f"### {name}"
    yield comments.get(at, "")
    rows = []
    for number, field in enumerate(message.field):
        shown = field.type_name.rpartition(".")[2] or _SCALARS[field.type]
        repeated = "repeated " if field.label == field.LABEL_REPEATED else ""
        choice = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            choice = f"one of `{message.oneof_decl[field.oneof_index].name}`. "
        comment = comments.get((*at, 2, number), "")
        rows.append((str(field.number), f"`{field.name}`", f"{repeated}{shown}", choice + comment))
    if rows:
        yield _table(("number", "field", "type", "meaning"), rows)
    for number, enum in enumerate(message.enum_type):
        values = ", ".join(f"`{value.name}` = {value.number}" for value in enum.value)
        comment = comments.get((*at, 4, number), "")
        yield f"`{enum.name}`: {values}. {comment}".strip()
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message_parts(inner, f"{name}.{inner.name}", (*at, 3, number), comments)


_SCALARS: Final = {
    value.number: value.name.removeprefix("TYPE_").lower()
    for value in descriptor_pb2.FieldDescriptorProto.Type.DESCRIPTOR.values
}


def _message(type_name: str, *, streamed: bool) -> str:
    name = type_name.rpartition(".")[2]
    return f"{'stream of ' if streamed else ''}[{name}](#{name.lower()})"


def _comment(at: descriptor_pb2.SourceCodeInfo.Location) -> str:
    return _cell_text(f"{at.leading_comments} {at.trailing_comments}")


# --- text -----------------------------------------------------------------------------


def _prose(text: str) -> str:
    """Return reStructuredText of a docstring or a help text as Markdown, on one line."""
    return _outside_code(inline(" ".join(text.split())))


def _cell_text(text: str) -> str:
    return _outside_code(" ".join(text.split()))


def _outside_code(text: str) -> str:
    """Escape characters of markup, except between backticks."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        plain = parts[index].replace("&", "&amp;").replace("<", "&lt;")
        parts[index] = re.sub(r"([*_|\[\]])", r"\\\1", plain)
    return "`".join(parts)


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


GENERATED: Final[Mapping[str, Callable[..., str]]] = {
    "cli": command_line,
    "events": event_kinds,
    "keys": keys,
    "metrics": counts,
    "strategies": strategy_options,
    "wire": wire,
}
"""The parts that a page may name."""
