"""``fedlearn audit inversion``: what one update of a site shows of its training examples.

The site gets a file with ``batch`` of its own examples, so that an app that trains for one epoch
takes one step on all of them; the update is then its step size times the gradient. With batch 1
that is the worst case. For an app that takes more steps the sum of their gradients is used in its
place, and the result states how much the update differs from one gradient.

The result compares each reconstruction with the mean image of the other sites, which an attacker
has without any attack. A reconstruction counts when it is 3 dB closer than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.audit.attacks import gradient_inversion as attack
from fedlearn.audit.attacks.image_quality import match, psnr, ssim
from fedlearn.audit.runs import SIMULATED, finite, run_variant, temporary, write_data
from fedlearn.audit.site_data import Records, compose, divide
from fedlearn.audit.target import AuditTarget
from fedlearn.audit.torch_model import load_arrays, named_for
from fedlearn.errors import ConfigError
from fedlearn.simulation import Call, Hook

__all__ = ["OBSERVERS", "InversionResult", "InversionRow", "audit_inversion"]

OBSERVERS: Final = ("update", "release")
MARGIN_DB: Final = 3.0
"""How much closer than the mean image a reconstruction must be to count."""

Arrays = Mapping[str, NDArray[Any]]
Images = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRow:
    """One attack on one form of the update, with a reconstruction for each original.

    ``name``        of the form: ``as sent``, or the defence that was added to it
    ``found``       reconstructions, one for each original, (batch, *image)
    ``labels``      that the attack read from the gradient
    ``psnr``, ``ssim``
                    of each reconstruction
    ``recovered``   for each, whether it is closer than the mean image by 3 dB
    """

    name: str
    found: Images = field(repr=False)
    labels: list[int]
    psnr: list[float]
    ssim: list[float]
    recovered: list[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionResult:
    """What an audit of one update found.

    ``originals``  the examples of the site, (batch, *image)
    ``mean``       the mean example of the other sites, (*image)
    ``cosine``     between the update and the true gradient: 1 for one step without a defence
    """

    job: str
    site: str
    round: int
    attack: str
    observer: str
    private: str
    span: tuple[float, float]
    originals: Images = field(repr=False)
    labels: list[int]
    mean: Images = field(repr=False)
    mean_psnr: list[float]
    mean_ssim: list[float]
    cosine: float
    rows: list[InversionRow]

    @property
    def verdict(self) -> str:
        """What was found, in one sentence for each form of the update."""
        return "; ".join(
            f"{row.name}: {sum(row.recovered)} of {len(row.recovered)} examples recovered"
            if any(row.recovered)
            else f"{row.name}: the attack failed, nothing is closer than the mean image"
            for row in self.rows
        )

    @property
    def note(self) -> str:
        """What limits the result; empty for nothing."""
        if self.cosine > 0.999:
            return ""
        return (
            f"the update is not one gradient (cosine {self.cosine:.3f}): a defence changed it, or "
            "the app took more than one step, and the attack treats the sum as one"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result without the images."""
        return {
            "audit": "inversion",
            "job": self.job,
            "note": SIMULATED,
            "site": self.site,
            "round": self.round,
            "attack": self.attack,
            "observer": self.observer,
            "privacy": self.private,
            "batch": len(self.labels),
            "labels": self.labels,
            "cosine_to_gradient": finite(self.cosine),
            "limit": self.note,
            "mean_image": {
                "psnr_db": [finite(value) for value in self.mean_psnr],
                "ssim": self.mean_ssim,
            },
            "forms": [
                {
                    "name": row.name,
                    "labels": row.labels,
                    "labels_right": row.labels == sorted(self.labels),
                    "psnr_db": [finite(value) for value in row.psnr],
                    "ssim": row.ssim,
                    "recovered": row.recovered,
                }
                for row in self.rows
            ],
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the attacker knows of the app."""

    model: torch.nn.Module
    loss: attack.Loss
    rate: float


class _Observer(Hook):  # type: ignore[misc, unused-ignore]
    """Keeps the model of a round and what one site answers in it."""

    def __init__(self, site: str, round_: int) -> None:
        self.site = site
        self.round = round_
        self.asked_arrays: dict[str, NDArray[Any]] | None = None
        self.sent: dict[str, NDArray[Any]] | None = None
        self.after: dict[str, NDArray[Any]] | None = None

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        if (
            call.kind.split(".")[0] == "train"
            and call.round == self.round + 1
            and self.after is None
        ):
            self.after = {name: np.array(array) for name, array in arrays.items()}
        return arrays

    def answered(
        self, call: Call, asked: Arrays, arrays: Arrays, metrics: Mapping[str, Any]
    ) -> Arrays:
        if (call.kind.split(".")[0], call.site, call.round) == ("train", self.site, self.round):
            self.asked_arrays = {name: np.array(array) for name, array in asked.items()}
            self.sent = {name: np.array(array) for name, array in arrays.items()}
        return arrays


def audit_inversion(
    target: AuditTarget,
    *,
    site: str = "",
    round_: int = 1,
    batch: int = 1,
    method: str = "cosine",
    observer: str = "update",
    iterations: int = 1000,
    restarts: int = 1,
    variation: float = 1e-4,
    clip: float | None = None,
    noise: float | None = None,
    seed: int = 0,
) -> InversionResult:
    """Attack the update that a site sends in one round of a job.

    :param site: the first of the job's sites by default.
    :param observer: ``update``: the site's update as the aggregator gets it; ``release``: the
        change of the global model in that round, which every site and the ServerApp get.
    :param clip: adds a form of the update: as if the site clipped it to this L2 norm,
    :param noise: and added normal noise of so many times the clip to each number.
    :raises ConfigError: when the job, its data or ``audit.toml`` have not what the attack needs.
    """
    _check(target, site, round_, batch, method, observer, clip, noise)
    site = site or target.job.sites[0]
    torch.set_num_threads(1)
    parts = _Parts(model=target.new_model(), loss=target.loss(), rate=target.rate())
    rng = np.random.default_rng([seed, 1])
    train, others = divide(target.records[site], target.spec.trained)
    if len(train) < batch:
        raise ConfigError(
            f"site {site} has {len(train)} examples to train on, and the audit needs {batch}",
            hint="lower --batch",
        )
    chosen = train.rows(np.sort(rng.choice(len(train), size=batch, replace=False)))
    watch = _Observer(site, round_)
    with temporary() as folder:
        file = compose(chosen, others if len(others) else train, target.spec.trained)
        data = write_data(target, folder / "data", {site: file})
        changes = {"rounds": round_ + (1 if observer == "release" else 0)}
        run_variant(target, folder / "job", changes=changes, data=data, hooks=[watch], seed=seed)
    return _result(
        target, watch, chosen, parts, site=site, method=method, observer=observer, seed=seed,
        settings=attack.InversionSettings(
            shape=target.shape,
            image=target.image,
            low=target.spec.low,
            high=target.spec.high,
            iterations=iterations,
            restarts=restarts,
            variation=variation,
        ),
        clip=clip,
        noise=noise,
    )  # fmt: skip


def _check(
    target: AuditTarget,
    site: str,
    round_: int,
    batch: int,
    method: str,
    observer: str,
    clip: float | None,
    noise: float | None,
) -> None:
    for option, value, known in (
        ("--attack", method, attack.ATTACKS),
        ("--observer", observer, OBSERVERS),
        ("--site", site or target.job.sites[0], target.job.sites),
    ):
        if value not in known:
            raise ConfigError(f"{value!r} is none of {', '.join(known[:8])}", where=option)
    if round_ < 1 or batch < 1:
        raise ConfigError(f"round {round_} and batch {batch} must be at least 1")
    if noise is not None and clip is None:
        raise ConfigError("needs --clip: noise is stated as a multiple of it", where="--noise")
    if target.job.compression.arrays:
        raise ConfigError(
            "only some arrays travel, and the attack needs the gradient of all",
            where=str(target.path),
            key="compression.arrays",
        )


def _result(
    target: AuditTarget,
    watch: _Observer,
    chosen: Records,
    parts: _Parts,
    *,
    site: str,
    method: str,
    observer: str,
    seed: int,
    settings: attack.InversionSettings,
    clip: float | None,
    noise: float | None,
) -> InversionResult:
    before, sent = watch.asked_arrays, watch.sent
    after = watch.after if observer == "release" else sent
    if before is None or sent is None or after is None:
        raise ConfigError(
            f"site {site} sent no update in round {watch.round}",
            hint="choose a round in which it takes part, or a site that takes part in each",
        )
    model, loss, rate = parts.model, parts.loss, parts.rate
    load_arrays(model, before)
    start, end = named_for(model, before), named_for(model, after)
    update = {
        name: (start[name] - end[name]) / rate
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    inputs = torch.from_numpy(target.inputs(chosen.x))
    true = attack.gradient_of(model, inputs, torch.from_numpy(chosen.y), loss)
    low, high = target.spec.low, target.spec.high
    originals = _images(inputs, target)
    mean = _mean_image(target, site)
    span = high - low
    mean_psnr = [psnr(image, mean, span=span) for image in originals]
    forms = [("as sent" if observer == "update" else "as released", update)]
    if clip is not None:
        forms.append(
            (f"clipped to {clip:g}" + (f", noise {noise:g}" if noise else ""),
             defended(update, rate, clip, noise or 0.0, seed))
        )  # fmt: skip
    rows = []
    for name, form in forms:
        labels = attack.label_counts(_last_bias(form), len(chosen))
        found = attack.reconstruct(method, model, form, labels, loss, settings, seed=seed)
        images = _images(found, target)[match(originals, _images(found, target))]
        pairs = list(zip(originals, images, strict=True))
        quality = [psnr(a, b, span=span) for a, b in pairs]
        rows.append(
            InversionRow(
                name=name,
                found=images,
                labels=labels,
                psnr=quality,
                ssim=[_ssim(a, b, span) for a, b in pairs],
                recovered=[
                    value >= base + MARGIN_DB
                    for value, base in zip(quality, mean_psnr, strict=True)
                ],
            )
        )
    return InversionResult(
        job=target.job.name,
        site=site,
        round=watch.round,
        attack=method,
        observer=observer,
        private="" if target.job.privacy is None else str(target.job.privacy.mechanism),
        span=(low, high),
        originals=originals,
        labels=chosen.y.tolist(),
        mean=mean,
        mean_psnr=mean_psnr,
        mean_ssim=[_ssim(image, mean, span) for image in originals],
        cosine=_cosine(update, true),
        rows=rows,
    )


def defended(
    gradient: attack.Gradient, rate: float, clip: float, noise: float, seed: int
) -> dict[str, Tensor]:
    """Return the gradient as if the site clipped its update and added normal noise to it.

    The update is ``rate`` times the gradient; ``clip`` bounds its L2 norm over all arrays, and
    ``noise * clip`` is the standard deviation on each number.
    """
    norm = rate * math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradient.values()))
    factor = min(1.0, clip / norm) if norm else 1.0
    generator = torch.Generator().manual_seed(seed)
    return {
        name: array * factor + noise * clip / rate * torch.randn(array.shape, generator=generator)
        for name, array in gradient.items()
    }


def _last_bias(gradient: attack.Gradient) -> Tensor:
    """Return the gradient of the last layer for each class.

    That of its bias; without one, the sum over the inputs of its weights, which has the same sign
    for inputs that are not negative (iDLG).
    """
    last = list(gradient.values())[-1]
    return last if last.ndim == 1 else last.sum(dim=tuple(range(1, last.ndim)))


def _images(examples: Tensor, target: AuditTarget) -> Images:
    return np.asarray(
        examples.detach().double().numpy().reshape(len(examples), *target.image), dtype=np.float64
    )


def _mean_image(target: AuditTarget, site: str) -> Images:
    rows = [target.inputs(r.x) for name, r in target.records.items() if name != site]
    if not rows:
        rows = [target.inputs(target.records[site].x)]
    return np.asarray(np.concatenate(rows).astype(np.float64).mean(axis=0).reshape(target.image))


def _ssim(a: Images, b: Images, span: float) -> float:
    return ssim(a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[None], span=span)


def _cosine(a: attack.Gradient, b: attack.Gradient) -> float:
    first, second = (torch.cat([g[name].reshape(-1).double() for name in a]) for g in (a, b))
    return float(torch.dot(first, second) / (first.norm() * second.norm() + 1e-300))
