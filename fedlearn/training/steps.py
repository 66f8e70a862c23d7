"""The steps of an optimiser, and what is done before and after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from fedlearn.errors import JobError

__all__ = ["Steps", "add_to_gradients"]


class Steps:
    """Counts the steps of one optimiser, and adds their learning rates.

    ``count``  steps so far
    ``rates``  the sum of their learning rates

    :param after: called after each step with its learning rate.
    :raises JobError: when the groups of the optimiser have different learning rates.
    """

    def __init__(
        self, optimizer: Optimizer, after: Callable[[float], None] = lambda rate: None
    ) -> None:
        self.count = 0
        self.rates = 0.0
        self._after = after
        _rate(optimizer)
        optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        rate = _rate(optimizer)
        self.count += 1
        self.rates += rate
        with torch.no_grad():
            self._after(rate)

    def check_any(self) -> None:
        """Check that there was a step. :raises JobError: when there was none."""
        if self.count == 0 or not self.rates > 0:
            raise JobError(
                f"the optimiser made {self.count} steps, with learning rates of {self.rates:g} in "
                "sum",
                hint="train at least one batch, with a learning rate above 0",
            )


def add_to_gradients(
    optimizer: Optimizer, added: Callable[[], Mapping[torch.nn.Parameter, torch.Tensor]]
) -> None:
    """Add to the gradient of each parameter, before each step of ``optimizer``.

    Parameters without a gradient are left out.
    """

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, term in added().items():
                if parameter.grad is not None:
                    parameter.grad.add_(term)

    optimizer.register_step_pre_hook(before)


def _rate(optimizer: Optimizer) -> float:
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) != 1:
        raise JobError(
            f"the optimiser has the learning rates {', '.join(map(str, sorted(rates)))}; this "
            "algorithm divides an update by one",
            hint="give all groups of parameters the same learning rate",
        )
    return rates.pop()
