"""``fedlearn audit inversion|membership|epsilon``: what a job shows of its data."""

from __future__ import annotations

import click

from fedlearn.cli.audit.output import Audit, audit_options
from fedlearn.cli.audit.robustness import backdoor, poisoning
from fedlearn.terminal.console import REFUSED, Commands

__all__ = ["group"]


@click.group(cls=Commands, name="audit")
def group() -> None:
    """Attack a job of your own in the simulator, and report what the attack achieves."""


group.add_command(poisoning)
group.add_command(backdoor)


@group.command("inversion")
@audit_options("inversion")
@click.option("--site", default="", help="Whose update; the first of the job by default.")
@click.option("--round", "round_", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--batch",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Examples that the site trains on; 1 is the worst case.",
)
@click.option(
    "--attack",
    "method",
    type=click.Choice(("cosine", "dlg", "analytic")),
    default="cosine",
    show_default=True,
    help="cosine: Geiping 2020; dlg: Zhu 2019; analytic: first layer linear, batch 1.",
)
@click.option(
    "--observer",
    type=click.Choice(("update", "release")),
    default="update",
    show_default=True,
    help="What is attacked: the site's update, or the change of the global model.",
)
@click.option("--iterations", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--restarts", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option(
    "--variation",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Weight of the total variation (--attack cosine).",
)
@click.option(
    "--clip",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Attack also an update that the site clipped to this norm.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0),
    default=None,
    help="And with normal noise of so many times the clip on each number.",
)
def inversion(
    audit: Audit,
    site: str,
    round_: int,
    batch: int,
    method: str,
    observer: str,
    iterations: int,
    restarts: int,
    variation: float,
    clip: float | None,
    noise: float | None,
) -> None:
    """Reconstruct a site's training examples from one update.

    audit.toml names the app's torch model, the file with the examples and the step size. The mean
    image of the other sites is the baseline: a reconstruction counts when it is 3 dB closer.
    """
    target = audit.target()
    from fedlearn.audit.figures import inversion_figure
    from fedlearn.audit.inversion import audit_inversion

    result = audit_inversion(
        target,
        site=site,
        round_=round_,
        batch=batch,
        method=method,
        observer=observer,
        iterations=iterations,
        restarts=restarts,
        variation=variation,
        clip=clip,
        noise=noise,
        seed=audit.seed,
    )
    audit.finish(result.to_json(), inversion_figure(result, audit.format), bad=False)


@group.command("membership")
@audit_options("membership")
@click.option(
    "--shadows",
    type=click.IntRange(4, 1024),
    default=16,
    show_default=True,
    help="Runs of the job for the attacker, an even number.",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Those of the job by default.")
@click.option(
    "--gamma",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="By what factor RMIA requires a ratio to be larger.",
)
def membership(audit: Audit, shadows: int, rounds: int | None, gamma: float) -> None:
    """Find out which examples the final model was trained on, by LiRA and RMIA.

    The job runs on random halves of the sites' examples. The result has the area under each curve
    and the true positive rates at false positive rates of 0.1% and 1%, with 95% intervals.
    """
    target = audit.target()
    from fedlearn.audit.figures import membership_figure
    from fedlearn.audit.membership import audit_membership

    result = audit_membership(
        target,
        shadows=shadows,
        rounds=rounds,
        gamma=gamma,
        seed=audit.seed,
        progress=audit.progress,
    )
    audit.finish(result.to_json(), membership_figure(result, audit.format), bad=False)


@group.command("epsilon")
@audit_options("epsilon")
@click.option(
    "--canaries",
    type=click.IntRange(2, 8191),
    default=500,
    show_default=True,
    help="How many sites or examples are in or not, by a coin for each.",
)
@click.option(
    "--kind",
    type=click.Choice(("sites", "examples")),
    default=None,
    help="What the canaries are; by default what [privacy] protects, and sites without it.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
)
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, max_open=True),
    default=None,
    help="Of the bound; by default that of the job, 1e-5 without [privacy].",
)
@click.option(
    "--claim",
    type=click.FloatRange(0),
    default=None,
    help="The epsilon that the app claims, where the job has no [privacy].",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Those of the job by default.")
@click.pass_context
def epsilon(
    context: click.Context,
    audit: Audit,
    canaries: int,
    kind: str | None,
    confidence: float,
    delta: float | None,
    claim: float | None,
    rounds: int | None,
) -> None:
    """Bound epsilon from below with one run, and compare it with the job's claim.

    A bound above the claim, or less noise than claimed, refutes the claim: the command ends with
    status 2.
    """
    target = audit.target()
    from fedlearn.audit.epsilon import audit_epsilon
    from fedlearn.audit.figures import epsilon_figure

    result = audit_epsilon(
        target,
        kind=kind or "",
        canaries=canaries,
        confidence=confidence,
        delta=delta,
        claim=claim,
        rounds=rounds,
        seed=audit.seed,
    )
    audit.finish(result.to_json(), epsilon_figure(result, audit.format), bad=result.fails)
    if result.fails:
        context.exit(REFUSED)
