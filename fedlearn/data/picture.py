"""A picture of who has what: for each site its examples, by class."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np

from fedlearn import extras
from fedlearn.data.parts_file import PartsFile
from fedlearn.errors import ConfigError

__all__ = ["FORMATS", "KINDS", "drawn"]

FORMATS: Final = ("png", "svg", "pdf")
KINDS: Final = ("bars", "bubbles")

_MOST_NAMES: Final = 40
_MOST_BUBBLES: Final = 20_000
_LARGEST_BUBBLE: Final = 260.0
_COLOURS: Final = "tab20"
_STYLE: Final = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 144,
    "svg.hashsalt": "fedlearn",
    "svg.fonttype": "none",
}


def drawn(parts: PartsFile, *, form: str, kind: str = "bars") -> bytes:
    """Return the picture as PNG, SVG or PDF. The same parts give the same bytes.

    ``bars`` stacks the classes of each site; ``bubbles`` has a circle for each site and class,
    whose area is the number of examples. Without classes both show the sizes of the sites.

    :raises ConfigError: for another form or kind, more than 20,000 bubbles, or when matplotlib is
        not installed.
    """
    if form not in FORMATS:
        raise ConfigError(f"a picture of the form {form!r}", hint=f"choose {', '.join(FORMATS)}")
    if kind not in KINDS:
        raise ConfigError(f"a picture of the kind {kind!r}", hint=f"choose {', '.join(KINDS)}")
    need = "a picture of divided data"
    backend: Any = extras.load("matplotlib.backends.backend_agg", needed_for=need)
    figures: Any = extras.load("matplotlib.figure", needed_for=need)
    matplotlib: Any = extras.load("matplotlib", needed_for=need)
    sites = list(parts.parts)
    classes = parts.classes or ("examples",)
    counts = np.array(
        [part.labels or (part.train + part.test,) for part in parts.parts.values()], dtype=np.int64
    )
    if kind == "bubbles" and counts.size > _MOST_BUBBLES:
        raise ConfigError(
            f"{counts.size:,} bubbles; at most {_MOST_BUBBLES:,} can be distinguished",
            hint="choose the kind bars",
        )
    with matplotlib.rc_context(_STYLE):
        width = min(4 + 0.25 * len(sites), 12)
        height = 4.2 if kind == "bars" else min(2 + 0.28 * len(classes), 12)
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        backend.FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw = _bars if kind == "bars" else _bubbles
        draw(axes, counts, classes, matplotlib.colormaps[_COLOURS])
        if len(sites) <= _MOST_NAMES:
            axes.set_xticks(range(len(sites)), sites, rotation=45, ha="right")
        axes.set_xlabel(f"{len(sites)} sites")
        axes.set_title(_title(parts), loc="left")
        buffer = io.BytesIO()
        about = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=form, metadata=about[form])
    return buffer.getvalue()


def _bars(axes: Any, counts: np.ndarray[Any, Any], classes: tuple[str, ...], colours: Any) -> None:
    tops = np.cumsum(counts, axis=1)
    # One polygon for a class, not one for a bar: 10,000 sites are drawn in a second.
    edges = np.arange(len(counts) + 1) - 0.5
    for number, name in enumerate(classes):
        low = tops[:, number] - counts[:, number]
        axes.fill_between(
            edges,
            np.append(low, low[-1]),
            np.append(tops[:, number], tops[-1, number]),
            step="post",
            linewidth=0,
            color=colours(number % colours.N),
            label=name,
        )
    axes.set_ylabel("examples")
    axes.margins(x=0)
    if 1 < len(classes) <= colours.N:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1, 1), frameon=False, reverse=True, fontsize=8
        )


def _bubbles(
    axes: Any, counts: np.ndarray[Any, Any], classes: tuple[str, ...], colours: Any
) -> None:
    site, number = np.nonzero(counts)
    area = counts[site, number] / max(int(counts.max()), 1) * _LARGEST_BUBBLE
    axes.scatter(site, number, s=area, c=[colours(each % colours.N) for each in number], alpha=0.8)
    if len(classes) <= _MOST_NAMES:
        axes.set_yticks(range(len(classes)), classes)
    axes.set_ylabel("class")
    axes.margins(x=0.05, y=0.1)


def _title(parts: PartsFile) -> str:
    setup = parts.setup
    keys = [f"{key} {setup[key]}" for key in ("alpha", "classes", "noise", "id") if setup.get(key)]
    return ", ".join([str(setup.get("partition", "")), *keys, f"seed {parts.seed}"])
