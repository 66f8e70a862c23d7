"""``fedlearn audit poisoning|backdoor``: what malicious sites do to a job's model."""

from __future__ import annotations

import click

from fedlearn.cli.audit.output import Audit, audit_options

__all__ = ["backdoor", "poisoning"]

_RULES = (
    "Rules, separated by commas, each with its options: krum,normclip:clip_norm=1. "
    "app: the job's own strategy."
)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@click.command("poisoning")
@audit_options("poisoning")
@click.option(
    "--rules",
    default="fedavg,fedmedian,fedtrimmedavg,krum,geomedian",
    show_default=True,
    help=_RULES,
)
@click.option(
    "--attacks",
    default="label-flip,sign-flip,gaussian,alie,inner-product",
    show_default=True,
    help="Attacks, separated by commas.",
)
@click.option(
    "--attackers",
    type=float,
    default=0.2,
    show_default=True,
    help="The share of the sites that are malicious.",
)
@click.option(
    "--strength",
    "strengths",
    multiple=True,
    metavar="ATTACK=NUMBER",
    help="Of an attack; may be repeated. sign-flip 4, gaussian 10, inner-product 1 by default.",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Those of the job by default.")
def poisoning(
    audit: Audit,
    rules: str,
    attacks: str,
    attackers: float,
    strengths: tuple[str, ...],
    rounds: int | None,
) -> None:
    """Attack each aggregation rule, and compare the accuracy at the honest sites.

    A label flip changes the attackers' data, for which audit.toml names the file of examples. The
    other attacks change their updates, and work on any app.
    """
    target = audit.target()
    from fedlearn.audit.figures import poisoning_figure
    from fedlearn.audit.poisoning import audit_poisoning, parse_rule, parse_strengths

    result = audit_poisoning(
        target,
        rules=[parse_rule(rule) for rule in _listed(rules)],
        attacks=_listed(attacks),
        share=attackers,
        strengths=parse_strengths(strengths),
        rounds=rounds,
        seed=audit.seed,
        progress=audit.progress,
    )
    audit.finish(result.to_json(), poisoning_figure(result, audit.format), bad=False)


@click.command("backdoor")
@audit_options("backdoor")
@click.option("--rules", default="fedavg,normclip,fedmedian,krum", show_default=True, help=_RULES)
@click.option(
    "--attackers",
    type=float,
    default=0.1,
    show_default=True,
    help="The share of the sites that are malicious.",
)
@click.option(
    "--label",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="That examples with the trigger are to get.",
)
@click.option(
    "--poisoned",
    type=float,
    default=0.5,
    show_default=True,
    help="The part of an attacker's examples that carry the trigger.",
)
@click.option(
    "--trigger",
    type=click.IntRange(1, 1000),
    default=2,
    show_default=True,
    help="Side of the square of pixels in the lower right corner.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="By which an attacker multiplies its update; by default what replaces the model.",
)
@click.option(
    "--start",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The first round that is attacked.",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Those of the job by default.")
def backdoor(
    audit: Audit,
    rules: str,
    attackers: float,
    label: int,
    poisoned: float,
    trigger: int,
    scale: float | None,
    start: int,
    rounds: int | None,
) -> None:
    """Plant a backdoor under each aggregation rule, by model replacement.

    audit.toml names the app's model and the file of examples. Success is the part of examples of
    other labels that get the attacker's label once they carry the trigger.
    """
    target = audit.target()
    from fedlearn.audit.backdoor import audit_backdoor
    from fedlearn.audit.figures import backdoor_figure
    from fedlearn.audit.poisoning import parse_rule

    result = audit_backdoor(
        target,
        rules=[parse_rule(rule) for rule in _listed(rules)],
        share=attackers,
        label=label,
        poisoned=poisoned,
        trigger=trigger,
        scale=scale,
        start=start,
        rounds=rounds,
        seed=audit.seed,
        progress=audit.progress,
    )
    audit.finish(result.to_json(), backdoor_figure(result, audit.format), bad=False)
