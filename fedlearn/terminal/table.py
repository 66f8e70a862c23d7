"""Tables on a terminal: one row a line, columns as wide as what is in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fedlearn.terminal.plaintext import printable

__all__ = ["table_lines"]


def table_lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()
) -> Iterator[str]:
    """Yield the head and the rows; the columns of ``numbers`` end flush.

    >>> rows = [["north", "7"], ["south-west", "1200"]]
    >>> print(*table_lines(["SITE", "BYTES"], rows, numbers=["BYTES"]), sep="\\n")
    SITE        BYTES
    north           7
    south-west   1200
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = (
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        )
        yield "  ".join(aligned).rstrip()
