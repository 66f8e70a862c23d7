"""``fedlearn privacy plan``: from an epsilon to the noise, and to the error that it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fedlearn.terminal.console import Commands, json_option, line, print_json

if TYPE_CHECKING:
    from fedlearn.privacy.plan import Plan

__all__ = ["group"]


@click.group(cls=Commands, name="privacy")
def group() -> None:
    """Plan the privacy of a job."""


@group.command("plan")
@click.option("--epsilon", type=float, required=True, help="The budget of the whole job.")
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--rounds", type=int, required=True, help="Rounds of the job.")
@click.option(
    "--unit",
    type=click.Choice(("site", "user", "example")),
    default=None,
    help="What is protected; site, unless --users or --examples is given.",
)
@click.option("--sites", type=int, default=None, help="Sites that answer in a round.")
@click.option("--users", type=int, default=None, help="Users of one site, for the unit user.")
@click.option("--examples", type=int, default=None, help="Examples of the smallest site.")
@click.option("--batch", type=int, default=None, help="Examples of a step on average.")
@click.option(
    "--steps",
    type=int,
    default=None,
    help="Steps of a site in a round; one pass over its examples by default.",
)
@click.option(
    "--groups", type=int, default=None, help="Groups of sites that take turns (sampling = cyclic)."
)
@click.option(
    "--parameters",
    type=int,
    default=100_000,
    show_default=True,
    help="Numbers in the model, for the signal to noise.",
)
@click.option(
    "--max-error",
    type=float,
    default=None,
    help="Refuse a plan whose noise on a number of the mean is a larger multiple of the clip.",
)
@click.option("--accountant", type=click.Choice(("rdp", "pld")), default="rdp", show_default=True)
@json_option
def plan_(
    epsilon: float,
    delta: float,
    rounds: int,
    unit: str | None,
    sites: int | None,
    users: int | None,
    examples: int | None,
    batch: int | None,
    steps: int | None,
    groups: int | None,
    parameters: int,
    max_error: float | None,
    accountant: str,
    as_json: bool,
) -> None:
    """Print the noise that an epsilon needs, and what it does to the mean.

    The error is the standard deviation of the noise on each number of the mean, as a multiple of
    the clip. The signal to noise is for the whole model: below about 1, a round moves it more by
    noise than by data.
    """
    from fedlearn.privacy.plan import Question, plan

    if unit is None:
        unit = "user" if users is not None else "example" if examples is not None else "site"
    found = plan(
        Question(
            epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            unit=unit,
            sites=sites,
            users=users,
            examples=examples,
            batch=batch,
            steps=steps,
            groups=groups,
            parameters=parameters,
            max_error=max_error,
            accountant=accountant,
        )
    )
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: Plan) -> None:
    asked = found.question
    line(
        f"noise_multiplier = {found.noise_multiplier:g}: epsilon {found.epsilon:.4g} at delta "
        f"{asked.delta:g} after {asked.rounds} rounds, unit {asked.unit}, {asked.accountant}",
        bold=True,
    )
    line(f"clip: {found.clip_advice}")
    if found.banded is not None:
        line(
            f'noise = "banded": {found.banded:.0%} of the error of independent noise on the sums '
            "of rounds"
        )
    of = "batch" if asked.unit == "example" else "sites"
    line(f"{of:>9}  {'noise multiplier':>16}  {'error / clip':>12}  {'signal to noise':>15}")
    for point in found.points:
        line(
            f"{point.of:>9}  {point.noise_multiplier:>16g}  {point.error:>12.4g}  "
            f"{point.signal_to_noise:>15.4g}"
        )
    if found.points[0].signal_to_noise < 1:
        line(
            f"the noise of one round is longer than a mean of the length of the clip, for a model "
            f"of {asked.parameters} numbers: use more sites or a larger batch, fewer rounds, or "
            "a smaller part of the model",
            style="yellow",
        )
