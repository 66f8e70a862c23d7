"""Ditto: a personal model beside the shared one (Li et al. 2021, arXiv:2012.04221, algorithm 1).

The shared model ``w`` is trained by FedAvg or another method. Besides, site ``k`` trains a model
``v`` of its own, which stays there, towards the least ``F_k(v) + lambda / 2 |v - w|^2``: each step
is ``v <- v - eta (grad F_k(v) + lambda (v - w))`` around the ``w`` that the site received.
"""

from __future__ import annotations

import copy
from typing import Final, Generic, TypeVar

from flwr.app import Context
from torch import nn
from torch.optim import Optimizer

from fedlearn.training.proximal import Proximal
from fedlearn.training.state import copies, keep, kept

__all__ = ["Ditto"]

_M = TypeVar("_M", bound=nn.Module)
_OWN: Final = "fedlearn.ditto"


class Ditto(Generic[_M]):
    """The personal model of a site::

        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        ditto = Ditto(context, model, weight=0.1)
        ...                                            # train model, as without it
        optimizer = torch.optim.SGD(ditto.model.parameters(), lr=0.01)
        ditto.attach(optimizer)
        ...                                            # train ditto.model
        ditto.keep()

    To evaluate, use ``ditto.model`` as it is. In a site's first round it is the shared model.

    :param model: the shared model as it was received; it is copied.
    :param weight: ``lambda``, from 0; with 0 the personal model is trained on the site's data
        alone.
    :raises JobError: for another weight, or when what the site kept does not fit the model.
    """

    def __init__(self, context: Context, model: _M, *, weight: float) -> None:
        self._context = context
        self.model = copy.deepcopy(model)
        shared = copies(dict(model.named_parameters()))
        own = kept(context, _OWN, self.model.state_dict())
        if own is not None:
            self.model.load_state_dict(own)
        self._term = Proximal(self.model, weight, around=shared)

    def attach(self, optimizer: Optimizer) -> None:
        """Pull the personal model towards the shared one before each step of its optimiser."""
        self._term.attach(optimizer)

    def keep(self) -> None:
        """Keep the personal model for the site's next round."""
        keep(self._context, _OWN, self.model.state_dict())
