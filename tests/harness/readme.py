"""The commands of a section of README.md, in the order in which a reader gives them.

A block ```` ```sh ```` is for the reader's shell. A line ``# at NAME`` in it names the party that
gives the commands after it; without one it is the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["README", "Step", "steps"]

README: Final = Path(__file__).resolve().parents[2] / "README.md"
_BLOCK: Final = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PARTY: Final = re.compile(r"# at (?:the )?([a-z]+)")


@dataclass(frozen=True, slots=True)
class Step:
    """One command, as printed, and who gives it. ``stays`` until it is stopped."""

    party: str
    command: str

    @property
    def stays(self) -> bool:
        """Whether it runs until it is stopped: a coordinator, or an agent."""
        return re.match(r"fedlearn-(server|edge) run\b", self.command) is not None


def steps(heading: str, text: str | None = None) -> Iterator[Step]:
    """Yield the commands below ``## heading``, up to the next heading of that level.

    :raises ValueError: when there is no such section, or it has no commands.
    """
    page = README.read_text(encoding="utf-8") if text is None else text
    head = f"\n## {heading}\n"
    if head not in page:
        raise ValueError(f"README.md has no section {heading!r}")
    section = page.split(head, 1)[1].split("\n## ", 1)[0]
    found = [step for block in _BLOCK.findall(section) for step in _of_block(block)]
    if not found:
        raise ValueError(f"the section {heading!r} has no block of sh")
    yield from found


def _of_block(block: str) -> Iterator[Step]:
    party = "reader"
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        if named := _PARTY.match(line):
            party = named[1]
        elif line and not line.startswith("#"):
            yield Step(party, line)
