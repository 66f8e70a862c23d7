"""MOON: model-contrastive learning (Li, He and Song 2021, arXiv:2103.16257).

With the representations ``z`` of the model that is trained, ``z_glob`` of the model that was
received and ``z_prev`` of the model that the site made in its round before, the loss of an example
gets (equation 3)

    mu * -log(exp(sim(z, z_glob) / t) / (exp(sim(z, z_glob) / t) + exp(sim(z, z_prev) / t)))

where ``sim`` is the cosine and ``t`` the temperature. The server is FedAvg's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Final

import torch
from flwr.app import Context
from torch import nn
from torch.nn import functional

from fedlearn.errors import JobError
from fedlearn.training.state import keep, kept

__all__ = ["Moon"]

_OWN: Final = "fedlearn.moon"


class Moon:
    """The contrastive term of one round::

        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        moon = Moon(context, model, mu=1.0, temperature=0.5)
        for x, y in batches:
            z = model.features(x)
            loss = cross_entropy(model.head(z), y) + moon.loss(lambda m: m.features(x), z)
            ...
        moon.keep(model)

    In a site's first round the model before is the received one, and the term has no gradient.

    :param model: as it was received; it is copied.
    :param mu: the weight of the term, from 0.
    :param temperature: above 0.
    :raises JobError: for other numbers, or when what the site kept does not fit the model.
    """

    def __init__(
        self, context: Context, model: nn.Module, *, mu: float = 1.0, temperature: float = 0.5
    ) -> None:
        if not (math.isfinite(mu) and mu >= 0):
            raise JobError(f"mu is {mu}; it must be a finite number from 0")
        if not (math.isfinite(temperature) and temperature > 0):
            raise JobError(f"the temperature is {temperature}; it must be a number above 0")
        self._context = context
        self._mu = mu
        self._temperature = temperature
        self._received = _frozen(model)
        self._before = _frozen(model)
        own = kept(context, _OWN, self._before.state_dict())
        if own is not None:
            self._before.load_state_dict(own)

    def loss(self, represent: Callable[[nn.Module], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
        """Return the mean of the term over a batch.

        :param represent: returns the representations of the batch by a model like the one that is
            trained; called with the received one and the one before, in evaluation mode.
        :param z: those of the model that is trained, shape (batch, ...).
        :raises JobError: when the representations have another shape than ``z``.
        """
        with torch.no_grad():
            shared, before = represent(self._received), represent(self._before)
        if shared.shape != z.shape or before.shape != z.shape:
            raise JobError(
                f"z has the shape {tuple(z.shape)}, and represent() returns {tuple(shared.shape)}"
            )
        near, far = (
            functional.cosine_similarity(z.flatten(1), each.flatten(1)) for each in (shared, before)
        )
        logits = torch.stack((near, far), dim=1) / self._temperature
        first = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return self._mu * functional.cross_entropy(logits, first)

    def keep(self, model: nn.Module) -> None:
        """Keep the trained model for the site's next round."""
        keep(self._context, _OWN, model.state_dict())


def _frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
