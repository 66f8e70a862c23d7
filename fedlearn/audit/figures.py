"""One figure for each audit, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedlearn import extras
from fedlearn.audit.runs import SIMULATED

if TYPE_CHECKING:
    from fedlearn.audit.backdoor import BackdoorResult
    from fedlearn.audit.epsilon import EpsilonResult
    from fedlearn.audit.inversion import InversionResult
    from fedlearn.audit.membership import MembershipResult
    from fedlearn.audit.poisoning import PoisoningResult

__all__ = [
    "FORMATS",
    "backdoor_figure",
    "epsilon_figure",
    "inversion_figure",
    "membership_figure",
    "poisoning_figure",
]

FORMATS: Final = ("png", "pdf", "svg")

_MOST_IMAGES: Final = 8
_STYLE: Final = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a93a1",
    "grid.color": "#e3e7ee",
    "axes.axisbelow": True,
    "figure.dpi": 110,
    "svg.hashsalt": "fedlearn",
}
_COLOURS: Final = ("#2456c9", "#c2611f", "#2f855a", "#8c3fb5", "#a08a12", "#5b6472")
_METADATA: Final = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    need = "the figure of an audit"
    matplotlib = extras.load("matplotlib", needed_for=need)
    figures = extras.load("matplotlib.figure", needed_for=need)
    backend = extras.load("matplotlib.backends.backend_agg", needed_for=need)
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        backend.FigureCanvasAgg(figure)
        yield figure


def _bytes(figure: Any, kind: str) -> bytes:
    """Return the figure as a file, the same bytes for the same figure."""
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    figure.text(1, 0, SIMULATED, ha="right", va="bottom", fontsize=6, color="#8a93a1")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def inversion_figure(result: InversionResult, kind: str = "png") -> bytes:
    """Return originals, the mean image and each reconstruction as a grid."""
    shown = min(len(result.originals), _MOST_IMAGES)
    rows = [
        ("original", result.originals, [""] * shown),
        ("mean of others", np.repeat(result.mean[None], shown, axis=0),
         [f"{value:.1f} dB" for value in result.mean_psnr]),
        *((row.name, row.found, [f"{value:.1f} dB" for value in row.psnr]) for row in result.rows),
    ]  # fmt: skip
    with _figure(1.6 + 1.1 * shown, 0.5 + 1.25 * len(rows)) as figure:
        axes = figure.subplots(len(rows), shown, squeeze=False)
        for line, (name, images, notes) in zip(axes, rows, strict=True):
            for column in range(shown):
                _picture(line[column], images[column], result.span)
                line[column].set_xlabel(notes[column], fontsize=7)
            line[0].set_ylabel(name.replace(", ", ",\n"), fontsize=7)
        figure.suptitle(f"{result.job}: {result.attack} on the {result.observer} of {result.site}")
        return _bytes(figure, kind)


def _picture(axes: Any, image: Any, span: tuple[float, float]) -> None:
    low, high = span
    if image.ndim == 3:
        image = image[0] if len(image) != 3 else np.moveaxis(image, 0, -1)
    if image.ndim == 1:
        axes.bar(range(len(image)), image, color=_COLOURS[0])
    elif image.ndim == 3:
        axes.imshow(np.clip((image - low) / (high - low), 0, 1))
    else:
        axes.imshow(image, cmap="gray", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])


def membership_figure(result: MembershipResult, kind: str = "png") -> bytes:
    """Return the curves of all attacks on logarithmic axes, with chance."""
    others = result.examples - result.members
    least = min(1 / others, 1 / result.members) / 2
    with _figure(5.2, 4.4) as figure:
        axes = figure.add_subplot()
        for number, score in enumerate(result.scores):
            axes.plot(
                np.maximum(score.false_positive, least),
                np.maximum(score.true_positive, least),
                color=_COLOURS[number % len(_COLOURS)],
                linestyle="--" if score.name.endswith("offline") else "-",
                label=f"{score.name}: AUC {score.area:.3f} [{score.low:.3f}, {score.high:.3f}]",
            )
        axes.plot([least, 1], [least, 1], color="#8a93a1", linestyle=":", label="chance")
        axes.axvspan(least, 1 / others, color="#f1f3f7", label="not resolved: below one example")
        axes.set(
            xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05),
            xlabel="false positive rate", ylabel="true positive rate",
        )  # fmt: skip
        axes.set_title(
            f"{result.job}: {result.shadows} shadow models, {result.members} members, "
            f"{others} others",
            loc="left",
        )
        axes.legend(frameon=False, fontsize=7, loc="lower right")
        return _bytes(figure, kind)


def epsilon_figure(result: EpsilonResult, kind: str = "png") -> bytes:
    """Return the scores of the canaries, and the lower bound beside the claim."""
    with _figure(7.4, 3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        bins = np.histogram_bin_edges(result.scores, bins=40)
        for which, name, colour in (
            (result.included, "included", _COLOURS[1]),
            (~result.included, "left out", _COLOURS[0]),
        ):
            left.hist(result.scores[which], bins=bins, alpha=0.6, color=colour, label=name)
        left.set(xlabel="score of a canary", ylabel="canaries")
        left.legend(frameon=False)
        claimed = np.isfinite(result.claim)
        bars = [("lower bound", result.bound.epsilon), ("largest possible", result.bound.ceiling)]
        if claimed:
            bars.append(("claim", result.claim))
        colours = [_COLOURS[1] if result.fails else _COLOURS[2], "#c3cad6", _COLOURS[0]]
        right.barh([name for name, _ in bars], [value for _, value in bars],
                   color=colours[: len(bars)])  # fmt: skip
        for name, value in bars:
            right.text(value, name, f" {value:.2f}", va="center", fontsize=8)
        right.set_xlim(0, 1.2 * max(value for _, value in bars) or 1)
        right.set_xlabel(f"epsilon (delta = {result.delta:g})")
        state = "REFUTED" if result.fails else "not refuted" if claimed else "nothing is claimed"
        figure.suptitle(f"{result.job}: the claim is {state}" if claimed else
                        f"{result.job}: {state}")  # fmt: skip
        return _bytes(figure, kind)


def poisoning_figure(result: PoisoningResult, kind: str = "png") -> bytes:
    """Return the accuracy for each attack and each rule as a heat map."""
    attacks = ("none", *result.attacks)
    values = np.array(
        [[result.cell(attack, rule).final for rule in result.rules] for attack in attacks]
    )
    width = 2.2 + 0.85 * len(result.rules)
    with _figure(max(width, 4.5), 1.6 + 0.42 * len(attacks)) as figure:
        axes = figure.add_subplot()
        picture = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1,
                              aspect="auto")  # fmt: skip
        axes.set_facecolor("#e3e7ee")
        for row, column in np.ndindex(*values.shape):
            value = values[row, column]
            text = f"{value:.2f}" if np.isfinite(value) else "not run"
            colour = "black" if np.isfinite(value) and value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=8,
                      color=colour if np.isfinite(value) else "#5b6472")  # fmt: skip
        axes.set_xticks(range(len(result.rules)), result.rules, rotation=30, ha="right")
        axes.set_yticks(range(len(attacks)), attacks)
        figure.colorbar(picture, ax=axes, label=result.metric)
        axes.set_title(
            f"{result.job}: {len(result.attackers)} of {result.sites} sites malicious", loc="left"
        )
        return _bytes(figure, kind)


def backdoor_figure(result: BackdoorResult, kind: str = "png") -> bytes:
    """Return attack success and accuracy by round, for each rule."""
    with _figure(7.4, 3.4) as figure:
        left, right = figure.subplots(1, 2, sharex=True)
        for number, rule in enumerate(result.rules):
            colour = _COLOURS[number % len(_COLOURS)]
            for attacked in (False, True):
                run = result.run(rule, attacked=attacked)
                if run.refused:
                    continue
                rounds = range(1, len(run.success) + 1)
                style = {"color": colour, "linestyle": "-" if attacked else ":"}
                left.plot(rounds, run.success, label=rule if attacked else None, **style)
                right.plot(rounds, run.accuracy, **style)
        for axes, name in ((left, "attack success"), (right, "accuracy")):
            axes.set(ylim=(-0.02, 1.02), xlabel="round", ylabel=name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        left.legend(frameon=False, fontsize=7, title="dotted: without the attack")
        figure.suptitle(
            f"{result.job}: {len(result.attackers)} of {result.sites} sites malicious, "
            f"updates times {result.scale:.3g} from round {result.start}"
        )
        return _bytes(figure, kind)
