"""The vocabulary: a word that was replaced by the term of the field does not come back.

Names, messages, comments and pages are checked alike, line by line; ``AdmissionGate`` and
``admission_gate`` have the words *admission* and *gate*.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SUFFIXES: Final = {".md", ".py", ".sh", ".toml", ".tpl", ".txt", ".yaml", ".yml"}

INSTEAD: Final[Mapping[str, str]] = {
    "desk": "handler or registry",
    "door": "the package's name",
    "doors": "the package's name",
    "establish": "initialize",
    "established": "initialized",
    "establishes": "initializes",
    "establishing": "initializing",
    "establishment": "initialization",
    "hear": "receive",
    "heard": "received",
    "hears": "receives",
    "leash": "process channel",
    "ownership": "TPM activation",
    "patiently": "retry",
    "phoenix": "restarting coordinator",
    "pipe": "process channel",
    "pipes": "process channels",
    "policymemory": "policy versions",
    "puppet": "misbehaving client",
    "roof": "layer",
    "said": "reported",
    "say": "state, report or return",
    "saying": "stating",
    "says": "states, reports or returns",
    "seedgrant": "seed release",
    "sponsor": "client service, or workload API",
    "sponsored": "registered",
    "sponsors": "client services",
    "sponsorship": "client service",
    "spine": "federation harness",
    "standing": "status",
    "surroundings": "environment",
    "tainted": "revoked",
    "told": "reported, or received",
    "wings": "layers",
}
"""Words that do not occur, and what stands instead."""

NAMES: Final[Mapping[str, str]] = {
    "AdmissionRegister": "AdmissionRegistry",
    "AgentLine": "AgentChannel",
    "ChallengeBook": "ChallengeStore",
    "Front": "FleetServer",
    "Home": "StateDirectory",
    "Impossible": "InconsistentValues",
    "JobBook": "JobStore",
    "JobDesk": "JobChannelHandler",
    "JobHost": "JobRunner",
    "JobLink": "JobExchange",
    "Membership": "AdmissionParams",
    "NodeDoor": "JobNodes",
    "OperatorRegister": "OperatorRegistry",
    "Place": "ReadContext",
    "PolicyDesk": "PolicyRegistry",
    "SiteRegister": "SiteRegistry",
    "Wrong": "InvalidValue",
    "leave_word": "write_termination_message",
    "paper_tpm": "synthetic_tpm",
}
"""Identifiers that do not occur: as words of prose they are ordinary English."""

ALLOWED: Final[tuple[tuple[str, str], ...]] = (
    (r"FEDLEARN_(SPONSOR(_PIN)?|LAST_WORDS)", "read by clients in pods of every release"),
    (r"sponsor_?(listen|address|port)|sponsor\.fedlearn|sponsor-tls", "keys of files, and labels"),
    (r"\bsponsor(\.port|:|,)|: sponsor\b|\"sponsor\":", "values and ports of a chart"),
    (
        r"\w*Sponsor(Servicer|Stub)\w*|^service Sponsor|fedlearn\.v1\.Sponsor",
        "the name of the service on the wire",
    ),
    (
        r"fedlearn-server\"?, \"?establish|server[` ]*establish|^establish`|establish\.sh|"
        r"-c establish|name: establish\b|\"establish\"",
        "a command, its script, and the container of a chart that runs it",
    ),
    (
        r"[\"`]established[\"`]|\bestablished: bool|catalogue\.established",
        "a key of the catalogue, and a value in ledgers",
    ),
    (r"Failed to establish|Connection established", "texts of urllib3 and of RFC 9110 proxies"),
    (
        r"\b(remote-debugging-pipe|os\.pipe|PIPE|SIGPIPE|pipefail|\w*BrokenPipe\w*|"
        r"\w*[Bb]roken[ _]pipe\w*)",
        "of the kernel",
    ),
    (r"code = \"tainted\"", "an error code between the processes of a job"),
    (r"\b(a|an|the|named|each) pipes?\b", "of the kernel"),
)
"""What may stay in a line, and why."""

_WORD: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_ALLOWED: Final = re.compile("|".join(pattern for pattern, _ in ALLOWED))
_NAME: Final = re.compile(r"\b(" + "|".join(NAMES) + r")\b")


def files() -> list[Path]:
    """Return every file of the tree that people write, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = map(Path, filter(None, listed.stdout.split("\0")))
    generated = ("_pb2", "_pb2_grpc")
    return [
        path
        for path in paths
        if path.suffix in SUFFIXES
        and not path.stem.endswith(generated)
        and path.name != Path(__file__).name
        and (ROOT / path).is_file()
    ]


def words(line: str) -> set[str]:
    """Return the words of ``line`` in lower case, those inside of names too, without ALLOWED."""
    return {word.lower() for word in _WORD.findall(_ALLOWED.sub("", line))}


def found(path: Path) -> Iterator[str]:
    """Yield each replaced word or name in a file, with its place and what stands instead."""
    code = path.suffix == ".py"
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        hits = {word: INSTEAD[word] for word in words(line) & INSTEAD.keys()}
        if code:
            hits |= {name: NAMES[name] for name in _NAME.findall(line)}
        for word, instead in hits.items():
            yield f"{path}:{number}: {word}: use {instead}"


def folder(path: Path) -> str:
    """Return the first part of a path; ``.`` for a file at the root."""
    return path.parts[0] if len(path.parts) > 1 else "."


@pytest.mark.parametrize("where", sorted({folder(path) for path in files()}))
def test_replaced_words_do_not_occur(where: str) -> None:
    wrong = [text for path in files() if folder(path) == where for text in found(path)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("class JobDesk:", {"desk"}),
        ("    self._sponsorship = sponsor", {"sponsorship", "sponsor"}),
        ("# What an agent is told.", {"told"}),
        ('sponsor_listen = "0.0.0.0:8453"', set()),
        ("results, result = os.pipe()", set()),
        ("The indoor floor, a foretold background", set()),
    ],
)
def test_words_are_found_in_names_and_in_prose(line: str, expected: set[str]) -> None:
    assert words(line) & INSTEAD.keys() == expected
