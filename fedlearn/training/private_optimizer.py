"""Opacus' optimizer of DP-SGD, with the noise of :class:`fedlearn.privacy.GridNoise`.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from fedlearn.errors import PrivacyError
from fedlearn.privacy.chain import GridNoise

__all__ = ["PrivateOptimizer"]


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clips the gradient of each example, adds noise to their sum, and steps.

    :param noise: the noise of a step, by its number from 1.
    :param steps: how many there may be.
    :param expected: by which the noised sum is divided; it does not depend on the draw.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: Callable[[int], GridNoise],
        steps: int,
        clip: float,
        expected: float,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise(1).multiplier,
            max_grad_norm=clip,
            expected_batch_size=1,
            loss_reduction="mean",
        )
        self.expected_batch_size = expected
        self._noise = noise
        self._most = steps
        self._taken = 0

    def add_noise(self) -> None:
        """Add noise to the sums of the clipped gradients, all parameters together."""
        if self._taken >= self._most:
            raise PrivacyError(
                f"the job allows {self._most} steps in a round, and this would be one more",
                hint="iterate over the loader of make_private once, or raise steps in [privacy]",
            )
        self._taken += 1
        sums = {
            str(index): np.array(each.summed_grad.detach().cpu().numpy(), np.float64)
            for index, each in enumerate(self.params)
        }
        noised: dict[str, Any] = self._noise(self._taken).apply(sums)
        for index, each in enumerate(self.params):
            made = torch.from_numpy(noised[str(index)])
            each.grad = made.to(each.summed_grad).view_as(each)
