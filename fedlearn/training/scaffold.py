"""The site's part of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II).

With the model ``x`` and the control variate ``c`` of the server, and ``c_i`` of this site, each
step is ``y <- y - eta_l (g_i(y) - c_i + c)``, and after ``K`` of them

    c_i+ = c_i - c + (x - y) / (K eta_l)

``c_i`` stays at the site. The server computes its change from the update and from ``K eta_l``,
which the site reports (:mod:`server.flower.aggregation.strategies.scaffold`).
"""

from __future__ import annotations

from typing import Final

import torch
from flwr.app import Context, Message
from torch import nn
from torch.optim import Optimizer

from fedlearn.app.algorithm_names import SCAFFOLD_CONTROL, SCAFFOLD_STEP_SUM
from fedlearn.errors import JobError
from fedlearn.training.state import copies, keep, kept_or_zeros, read
from fedlearn.training.steps import Steps

__all__ = ["Scaffold"]

_OWN: Final = "fedlearn.scaffold"


class Scaffold:
    """One round of SCAFFOLD at a site::

        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        scaffold = Scaffold(message, context, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaffold.attach(optimizer)
        ...                                            # train as without it
        metrics = {"num-examples": examples, **scaffold.finish()}

    The correction ``c - c_i`` is applied after the optimiser's own step, so for SGD without
    momentum the steps are those of the paper. With momentum they are those of NIID-Bench (Li et al.
    2022, arXiv:2102.02079): the correction is not accumulated.

    :param model: with the arrays of the message loaded. Parameters that need no gradient, and
        buffers, have no control variate.
    :raises JobError: when the message has no control variate of this model.
    """

    def __init__(self, message: Message, context: Context, model: nn.Module) -> None:
        self._context = context
        self._parameters = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        self._received = copies(self._parameters)
        record = message.content.get(SCAFFOLD_CONTROL)
        if record is None:
            raise JobError(
                "the message has no control variate",
                hint='the job needs name = "scaffold" in [strategy]',
            )
        # Buffers have a control variate at the server, which is of no use here.
        like = {name: each.to(_kept_type(each.dtype)) for name, each in self._received.items()}
        self._server = read(record, "the control variate", like)
        self._own = kept_or_zeros(context, _OWN, self._server)
        self._steps: Steps | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Correct each step of an optimiser from now on.

        :raises JobError: when its groups have different learning rates, or another one is attached.
        """
        if self._steps is not None:
            raise JobError("an optimiser is attached already; a round has one")
        correction = {name: self._server[name] - self._own[name] for name in self._parameters}

        def correct(rate: float) -> None:
            for name, parameter in self._parameters.items():
                parameter.add_(correction[name].to(parameter.dtype), alpha=-rate)

        self._steps = Steps(optimizer, correct)

    def finish(self) -> dict[str, float]:
        """Keep the site's control variate, and return the metrics that the reply must have.

        :raises JobError: when no step was made.
        """
        if self._steps is None:
            raise JobError("no optimiser was attached", hint="call attach() before the training")
        self._steps.check_any()
        rates = self._steps.rates
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                change = self._received[name].double() - parameter.double()
                mean = (change / rates).to(self._own[name].dtype)
                self._own[name] = self._own[name] - self._server[name] + mean
        keep(self._context, _OWN, self._own)
        return {SCAFFOLD_STEP_SUM: rates}


def _kept_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
