"""The site's part of FedDyn (Acar et al. 2021, arXiv:2111.04263, algorithm 1).

With the model ``x`` of the server, a site minimises ``L(y) - <g, y> + alpha / 2 |y - x|^2``: it
adds ``alpha (y - x) - g`` to the gradient of its loss. After the round it keeps
``g <- g - alpha (y - x)``, which is the gradient of ``L`` at ``y`` where ``y`` is the minimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from flwr.app import Context, Message
from torch import nn
from torch.optim import Optimizer

from fedlearn.app.algorithm_names import FEDDYN_ALPHA
from fedlearn.errors import JobError
from fedlearn.training.proximal import number_of
from fedlearn.training.state import copies, keep, kept_or_zeros
from fedlearn.training.steps import add_to_gradients

__all__ = ["FedDyn"]

_OWN: Final = "fedlearn.feddyn"


class FedDyn:
    """One round of FedDyn at a site::

        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        dyn = FedDyn(message, context, model)
        dyn.attach(optimizer)
        ...                                            # train
        dyn.finish()

    :param model: with the arrays of the message loaded.
    :raises JobError: when the message has no ``alpha`` above 0.
    """

    def __init__(self, message: Message, context: Context, model: nn.Module) -> None:
        wish = 'the job needs name = "feddyn" in [strategy]'
        self.alpha = number_of(message, FEDDYN_ALPHA, wish)
        if not self.alpha > 0:
            raise JobError(f"alpha is {self.alpha}; it must be above 0", hint=wish)
        self._context = context
        self._parameters = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        self._received = copies(self._parameters)
        self._gradients = kept_or_zeros(context, _OWN, self._received)

    def attach(self, optimizer: Optimizer) -> None:
        """Add the two terms to the gradients before each step of an optimiser."""
        add_to_gradients(optimizer, self._terms)

    def finish(self) -> None:
        """Keep the site's gradient for its next round."""
        with torch.no_grad():
            moved = {
                name: self._gradients[name] - self.alpha * (each - self._received[name])
                for name, each in self._parameters.items()
            }
        keep(self._context, _OWN, moved)

    def _terms(self) -> Mapping[nn.Parameter, torch.Tensor]:
        return {
            each: self.alpha * (each - self._received[name]) - self._gradients[name]
            for name, each in self._parameters.items()
        }
