"""What in a valid job deserves a look: settings without an effect, and what will not be shown.

The sources of the app are read and not run, so notes about the app are hints: they can be wrong in
both directions. What the notes are about does not make a job fail.

The page is docs/how-to/choose-a-strategy.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fedlearn.api.inspection.imports import Imports
from fedlearn.api.inspection.sources import AppSources, StartedStrategy
from fedlearn.app.checks import Application
from fedlearn.job.constraints.robust_rules import too_few_updates
from fedlearn.job.spec import JobSpec
from fedlearn.job.strategies import (
    APP,
    STRATEGIES,
    VISIBLE_TO_APP,
    client_parts,
    ineffective_options,
    option_fault,
    privacy_fault,
)
from fedlearn.privacy.spec import PrivacySpec

__all__ = ["app_notes", "privacy_notes"]

_AIDS: Final = "fedlearn.training"
_NODES: Final = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")


def app_notes(
    spec: JobSpec, application: Application, sources: AppSources, imports: Imports
) -> tuple[str, ...]:
    """Return notes on how the job and its app fit together, one line each."""
    started = sources.strategies()
    return (
        *_rounds(spec, application),
        *_single_updates(spec, sources),
        *_replaced(spec, started),
        *_options(spec, started),
        *_nodes(spec, started),
        *_client(spec, started, sources, imports),
        *(
            f"{where}, which is neither in the app nor installed here: the sites and the "
            "coordinator need it"
            for where in imports.absent
        ),
    )


def privacy_notes(spec: JobSpec, sources: AppSources) -> tuple[str, ...]:
    """Return what a job with ``[privacy]`` does not show, and what it may show instead."""
    if spec.privacy is None:
        return ()
    return (*_units(spec.privacy), *_metrics(spec.privacy, sources))


def _units(privacy: PrivacySpec) -> Iterator[str]:
    """Yield what of the privacy is the app's part."""
    if privacy.unit != "site":
        part = "clips and adds the noise" if privacy.noised_by_app else "clips"
        yield (
            f"the unit is the {privacy.unit}: the app {part} itself (fedlearn.training.private), "
            "and the guarantee is that of this app; a site accepts it by privacy.unit of its "
            "site.toml"
        )


def _metrics(privacy: PrivacySpec, sources: AppSources) -> tuple[str, ...]:
    if privacy.insecure_exact_metrics:
        return (
            "insecure_exact_metrics: the sites' losses and metrics leave them without noise, and "
            "the promise of [privacy] does not cover them",
        )
    without = (
        "under [privacy] no loss or metric of a site leaves it: such a number is computed from its "
        "data, without noise"
    )
    if sources.passes("evaluate_fn"):
        return (f"{without}; shown are the metrics of the ServerApp's evaluate_fn",)
    return (
        f"{without}. To see how the job does, let the ServerApp evaluate the model of each round "
        "on public data in its bundle (`evaluate_fn` of `strategy.start`), which costs no budget",
    )


def _rounds(spec: JobSpec, application: Application) -> Iterator[str]:
    """Yield whether the app states another number of rounds than the job."""
    key = "num-server-rounds"
    stated = spec.config.get(key, application.defaults.get(key, spec.rounds))
    if stated != spec.rounds:
        yield (
            f"the job has rounds = {spec.rounds}, and the app's {key} is {stated}: a strategy that "
            f"the app starts runs {spec.rounds} rounds, an app that drives the grid itself or uses "
            f"the legacy API as many as it reads; set config.{key} = {spec.rounds}"
        )


def _single_updates(spec: JobSpec, sources: AppSources) -> Iterator[str]:
    """Yield where the app seems to need more than the job lets it receive."""
    if spec.aggregation.visible:
        return
    remedy = (
        "under [privacy] the app can only start one of Flower's strategies, unchanged"
        if spec.privacy is not None
        else f'set updates = "{VISIBLE_TO_APP}" in [aggregation]'
    )
    for where in sources.single_updates(own_strategy=spec.strategy.name == APP):
        yield f"{where}, which needs the updates of single sites; {remedy}"


def _replaced(spec: JobSpec, started: tuple[StartedStrategy, ...]) -> Iterator[str]:
    """Yield whether the job's strategy replaces one of the app that is not the same."""
    name = spec.strategy.name
    for own in started if name != APP else ():
        if own.title.lower() != name or _differ(name, own.options, spec.strategy.options):
            yield (
                f'the job\'s strategy "{name}" replaces {own.title} of the app ({own.where}); '
                f'name = "{APP}" in [strategy] uses that of the app'
            )


def _differ(name: str, own: Mapping[str, object], ours: Mapping[str, object]) -> bool:
    return any(own[option] != ours.get(option) for option in own if option in STRATEGIES[name])


def _options(spec: JobSpec, started: tuple[StartedStrategy, ...]) -> Iterator[str]:
    for name, options, where in _in_force(spec, started):
        for text in ineffective_options(name, options):
            yield f"{where}{text}"
        if spec.strategy.name != APP:
            continue
        # The job's own options are checked where the job is read.
        if spec.privacy is not None and (
            fault := privacy_fault(name, updates=spec.privacy.updates_are_private)
        ):
            yield f"{where}{name} {fault}, so [privacy] refuses it"
        elif few := too_few_updates(name, options, spec.quorum):
            yield f"{where}{few}"


def _nodes(spec: JobSpec, started: tuple[StartedStrategy, ...]) -> Iterator[str]:
    """Yield which numbers of the job a strategy of the app replaces by its own."""
    if spec.strategy.name != APP:
        return
    if 0 < spec.evaluate.fraction < 1:
        yield (
            f"evaluate.fraction = {spec.evaluate.fraction:g} has no effect on a strategy that the "
            "app starts: its own fraction_evaluate counts"
        )
    for own in started if spec.privacy is None else ():
        if own.title.lower() not in STRATEGIES or None in own.computed:
            continue
        for option in _NODES:
            # Flower's default is 2.
            least = 0 if option in own.computed else own.options.get(option, 2)
            if isinstance(least, int) and least > spec.quorum:
                yield (
                    f"{own.where}: {own.title} waits for {option} = {least} sites, and the job has "
                    f"quorum = {spec.quorum}: the larger number counts"
                )
                break


def _client(
    spec: JobSpec, started: tuple[StartedStrategy, ...], sources: AppSources, imports: Imports
) -> Iterator[str]:
    """Yield what the strategy needs of the ClientApp that its sources do not seem to have."""
    if not imports.client:
        return
    for name, options, where in _in_force(spec, started):
        for part in client_parts(name, options):
            if sources.has_text(imports.client, part.key):
                continue
            if part.aid and sources.imports_name(imports.client, _AIDS, part.aid):
                continue
            aid = f" (or uses {_AIDS}.{part.aid})" if part.aid else ""
            if part.reads:
                yield (
                    f"{where}{name} sends {part.key!r} to the clients, and the ClientApp does not "
                    f"seem to use it: {part.option} has no effect until its training reads "
                    f'message.content["config"]["{part.key}"]{aid}'
                )
            elif spec.privacy is None:
                yield (
                    f"{where}{name} needs the metric {part.key!r} of each update "
                    f"({part.option}), and the ClientApp does not seem to report it{aid}"
                )


def _in_force(
    spec: JobSpec, started: tuple[StartedStrategy, ...]
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield the strategies that run, with their options, and where the app makes them."""
    if spec.strategy.name != APP:
        yield spec.strategy.name, spec.strategy.options, ""
        return
    for own in started:
        name = own.title.lower()
        if name in STRATEGIES and name != APP:
            known = {
                option: value
                for option, value in own.options.items()
                if option in STRATEGIES[name] and not option_fault(name, option, value)
            }
            yield name, known, f"{own.where}: "
