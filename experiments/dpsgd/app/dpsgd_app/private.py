"""DP-SGD (Abadi et al. 2016, arXiv:1607.00133) with Opacus, example by example.

Each step draws every example with the probability ``batch / n`` (Poisson sampling), clips the
gradient of each to ``clip``, and adds Gaussian noise to their sum. The noise multiplier is the
least for which all steps of all rounds spend ``epsilon`` at ``delta``, by Opacus' RDP accountant.
"""

from __future__ import annotations

import warnings

import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

_PIECE = 256
"""Examples whose gradients are in memory at once."""


class Accounting:
    """The noise of one site and what it has spent.

    :param examples: of the site.
    :param steps: of all rounds together.
    """

    def __init__(
        self, *, examples: int, batch: int, steps: int, epsilon: float, delta: float
    ) -> None:
        if batch >= examples:
            raise ValueError(f"a batch of {batch} from {examples} examples; it must be smaller")
        self._rate = batch / examples
        self._delta = delta
        self.noise_multiplier = _noise(epsilon, delta, self._rate, steps) if epsilon else 0.0

    def spent(self, steps: int) -> float:
        """Return the epsilon of so many steps."""
        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier, self._rate, steps)]
        return float(accountant.get_epsilon(self._delta))


def train(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    momentum: float,
    clip: float,
    noise_multiplier: float,
) -> None:
    """Train by so many steps; without noise, gradients are not clipped either."""
    sgd = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    model.train()
    if not noise_multiplier:
        for _ in range(steps):
            rows = _drawn(len(labels), batch)
            sgd.zero_grad()
            functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            sgd.step()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's hooks on modules whose input has no gradient
        private = GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(
            sgd,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=batch,
            loss_reduction="mean",
        )
        for _ in range(steps):
            pieces = _drawn(len(labels), batch).split(_PIECE)
            for index, rows in enumerate(pieces):
                optimizer.signal_skip_step(do_skip=index < len(pieces) - 1)
                loss = functional.cross_entropy(
                    private(inputs[rows]), labels[rows], reduction="sum"
                )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        private.to_standard_module()


def _drawn(examples: int, batch: int) -> torch.Tensor:
    """Return the rows of one step, each drawn with the probability ``batch / examples``."""
    return (torch.rand(examples) < batch / examples).nonzero()[:, 0]


def _noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about orders of RDP at the ends of the search
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
            )
        )
