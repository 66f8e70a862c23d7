"""The proximal term of FedProx (Li et al. 2020, arXiv:1812.06127), as a gradient.

FedProx minimises ``F_k(w) + mu / 2 |w - w_t|^2``, where ``w_t`` is the model that the site
received. The gradient of the second term is ``mu (w - w_t)``. It is added to the gradients before
each step, so the loss that an app reports stays that of its data, and nothing of the term is
differentiated.

The page is docs/reference/api/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ConfigRecord, Message
from torch import nn
from torch.optim import Optimizer

from fedlearn.app.algorithm_names import PROXIMAL_MU
from fedlearn.errors import JobError
from fedlearn.training.steps import add_to_gradients

__all__ = ["Proximal", "number_of"]


class Proximal:
    """A proximal term around the present weights of a model::

        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        Proximal.of_job(message, model).attach(optimizer)

    >>> model = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> Proximal(model, mu=2.0).attach(optimizer)
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(1.0)  # one above the weight that was received
    >>> model.weight.grad = torch.zeros(1, 1)
    >>> optimizer.step()
    >>> round(model.weight.grad.item(), 6)
    2.0

    :param mu: from 0; 0 changes nothing.
    :param around: the tensors of ``w_t`` by the names of the parameters; the present weights of the
        model if it is None.
    :raises JobError: for another ``mu``.
    """

    def __init__(
        self, model: nn.Module, mu: float, *, around: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        if not (math.isfinite(mu) and mu >= 0):
            raise JobError(f"mu is {mu}; it must be a finite number from 0")
        self.mu = mu
        center = dict(model.named_parameters()) if around is None else around
        self._pairs = {
            each: center[name].detach().clone()
            for name, each in model.named_parameters()
            if each.requires_grad
        }

    @classmethod
    def of_job(cls, message: Message, model: nn.Module) -> Proximal:
        """Return the term with the ``proximal_mu`` of the job's strategy, ``fedprox``.

        :raises JobError: when the message has none.
        """
        wish = 'the job needs name = "fedprox" and options = { proximal_mu = ... } in [strategy]'
        return cls(model, number_of(message, PROXIMAL_MU, wish))

    def attach(self, optimizer: Optimizer) -> None:
        """Add the term to the gradients before each step of an optimiser."""
        if self.mu:
            add_to_gradients(optimizer, self._terms)

    def _terms(self) -> Mapping[nn.Parameter, torch.Tensor]:
        return {each: self.mu * (each - center) for each, center in self._pairs.items()}


def number_of(message: Message, key: str, wish: str) -> float:
    """Return a number in the configuration of a message.

    :raises JobError: when there is none; ``wish`` is its hint.
    """
    records: Iterable[object] = message.content.values()
    for record in records:
        value = record.get(key) if isinstance(record, ConfigRecord) else None
        if isinstance(value, int | float):
            return float(value)
    raise JobError(f"the message has no number {key!r} in its configuration", hint=wish)
