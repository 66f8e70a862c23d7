"""Reconstructs training examples from a gradient.

``dlg``       Zhu et al. 2019 (arXiv:1906.08935): examples whose gradient has the least squared
              distance to the one that was observed, by L-BFGS. The labels are those of the sign
              rule (iDLG), which Zhu et al. optimise along with the examples
``cosine``    Geiping et al. 2020 (arXiv:2003.14053): the angle between the gradients and not their
              distance, with total variation, by Adam on the sign of its gradient
``analytic``  one example, and a first layer that is linear with a bias: the example is the ratio of
              the gradients of weight and bias (Phong et al. 2018; Geiping et al. 2020, section 3)

Labels are recovered first, by the sign rule of iDLG (Zhao et al. 2020, arXiv:2001.02610) for one
example and by its extension to counts for several (Geng et al. 2021, arXiv:2110.09074).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedlearn.errors import ConfigError

__all__ = [
    "ATTACKS",
    "Gradient",
    "InversionSettings",
    "Loss",
    "analytic_example",
    "gradient_of",
    "label_counts",
    "reconstruct",
]

Gradient = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

ATTACKS: Final = ("cosine", "dlg", "analytic")
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionSettings:
    """How an attack searches.

    ``shape``       of one example as the model takes it
    ``image``       the same as (height, width) or (channels, height, width), for total variation
    ``low, high``   the values that an example can have
    ``iterations``  of the optimiser, for each restart
    ``restarts``    independent starts; the one with the smallest objective counts
    ``variation``   weight of the total variation (``cosine`` only)
    ``step``        the first step size of Adam (``cosine`` only)
    """

    shape: tuple[int, ...]
    image: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    iterations: int = 1000
    restarts: int = 1
    variation: float = 1e-4
    step: float = 0.1


def gradient_of(
    model: nn.Module, examples: Tensor, labels: Tensor, loss: Loss, *, graph: bool = False
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss for each parameter of the model, by name.

    :param graph: keep what is needed to differentiate the gradient again.
    """
    named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    value = loss(functional_call(model, named, (examples,)), labels)
    found = torch.autograd.grad(value, list(named.values()), create_graph=graph, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def label_counts(gradient: Tensor, batch: int) -> list[int]:
    """Return the labels of a batch from the gradient of the last layer's bias, sorted.

    For cross-entropy the gradient of class ``c`` is the mean probability of ``c`` minus the share
    of ``c`` in the batch. For one example exactly one entry is negative, the label (iDLG). For
    several, the probabilities are taken as equal over the classes, which holds for a model at its
    start.

    :param gradient: one number for each class.
    """
    left = (1 / len(gradient) - gradient.detach().double()) * batch
    labels = []
    for _ in range(batch):
        label = int(torch.argmax(left))
        labels.append(label)
        left[label] -= 1
    return sorted(labels)


def analytic_example(model: nn.Module, gradient: Gradient) -> Tensor:
    """Return the one example of a batch of one, from the gradient of the first layer.

    ``dL/dW = dL/dz x^T`` and ``dL/db = dL/dz``, so each row of the first over the entry of the
    second is the example. The row with the largest entry is used.

    :raises ConfigError: when the first layer is not linear with a bias, or its gradient is zero.
    """
    first = next(
        (
            name
            for name, layer in model.named_modules()
            if not list(layer.children()) and any(True for _ in layer.parameters(recurse=False))
        ),
        None,
    )
    layer = None if first is None else model.get_submodule(first)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        kind = "none" if layer is None else type(layer).__name__
        raise ConfigError(
            f"the analytic attack needs a first layer that is Linear with a bias, not {kind}",
            hint="use --attack cosine",
        )
    prefix = f"{first}." if first else ""
    weight, bias = gradient[f"{prefix}weight"], gradient[f"{prefix}bias"]
    row = int(torch.argmax(bias.abs()))
    if float(bias[row].abs()) < _TINY:
        raise ConfigError(
            "the gradient of the first layer is zero, and nothing can be read from it",
            hint="the update of this round did not change the first layer",
        )
    return weight[row] / bias[row]


def reconstruct(
    attack: str,
    model: nn.Module,
    gradient: Gradient,
    labels: Sequence[int],
    loss: Loss,
    settings: InversionSettings,
    *,
    seed: int,
) -> Tensor:
    """Return examples (as many as there are labels) whose gradient is like the observed one.

    Deterministic for a seed on one machine and one number of threads of torch.

    :raises ConfigError: for an unknown attack, NaN in the gradient, or where ``analytic`` cannot
        be used.
    """
    if attack not in ATTACKS:
        raise ConfigError(f"no attack {attack!r}", hint=f"one of {', '.join(ATTACKS)}")
    for name, array in gradient.items():
        if not bool(torch.isfinite(array).all()):
            raise ConfigError(f"the observed gradient contains NaN or infinity in {name!r}")
    if attack == "analytic":
        if len(labels) != 1:
            raise ConfigError(
                f"the analytic attack reconstructs a batch of 1, not {len(labels)}",
                hint="use --attack cosine",
            )
        return analytic_example(model, gradient).reshape(1, *settings.shape).detach()
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor(list(labels))
    search = _cosine if attack == "cosine" else _dlg
    best, least = None, math.inf
    for _ in range(settings.restarts):
        start = torch.randn((len(labels), *settings.shape), generator=generator)
        if attack == "dlg":
            start = settings.low + (settings.high - settings.low) * torch.rand(
                (len(labels), *settings.shape), generator=generator
            )
        found, value = search(model, gradient, target, loss, settings, start)
        if best is None or value < least:
            best, least = found, value
    assert best is not None
    return best


def _cosine(
    model: nn.Module,
    gradient: Gradient,
    labels: Tensor,
    loss: Loss,
    settings: InversionSettings,
    start: Tensor,
) -> tuple[Tensor, float]:
    examples = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([examples], lr=settings.step)
    milestones = [int(settings.iterations * part / 8) for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    observed = _flat(gradient)
    norm = observed.norm()
    best, least = start, math.inf
    for _ in range(settings.iterations):
        made = _flat(gradient_of(model, examples, labels, loss, graph=True))
        angle = 1 - torch.dot(made, observed) / (made.norm() * norm + _TINY)
        value = angle + settings.variation * _variation(examples, settings.image)
        (slope,) = torch.autograd.grad(value, [examples])
        if value.item() < least:
            best, least = examples.detach().clone(), value.item()
        examples.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            examples.clamp_(settings.low, settings.high)
    return best, least


def _dlg(
    model: nn.Module,
    gradient: Gradient,
    labels: Tensor,
    loss: Loss,
    settings: InversionSettings,
    start: Tensor,
) -> tuple[Tensor, float]:
    examples = start.clone().requires_grad_(True)
    observed = _flat(gradient)
    # The squared distance in units of the observed gradient, so that one tolerance fits all.
    scale = float(observed.norm()) + _TINY
    optimizer = torch.optim.LBFGS([examples], lr=1.0, max_iter=20, history_size=50)
    best, least = start, math.inf

    def distance() -> Tensor:
        optimizer.zero_grad()
        made = _flat(gradient_of(model, examples, labels, loss, graph=True))
        value = ((made - observed) / scale).square().sum()
        value.backward()
        return value

    for _ in range(max(1, settings.iterations // 20)):
        before = examples.detach().clone()
        value = optimizer.step(distance).item()  # of the examples before the step
        if not math.isfinite(value):
            break
        if value < least:
            best, least = before, value
    last = distance().item()
    if math.isfinite(last) and last < least:
        best, least = examples.detach().clone(), last
    for parameter in model.parameters():
        parameter.grad = None
    return best.clamp(settings.low, settings.high), least


def _flat(gradient: Gradient) -> Tensor:
    return torch.cat([array.reshape(-1) for array in gradient.values()])


def _variation(examples: Tensor, image: tuple[int, ...]) -> Tensor:
    """Return the anisotropic total variation, the mean over all neighbours."""
    if len(image) < 2:
        return examples.new_zeros(())
    pixels = examples.reshape(len(examples), -1, *image[-2:])
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean()
    right = (pixels[..., :, 1:] - pixels[..., :, :-1]).abs().mean()
    return down + right
