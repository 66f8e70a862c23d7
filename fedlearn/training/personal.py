"""Layers that a site keeps to itself: FedBN, FedPer and FedRep.

* FedBN (Li et al. 2021, arXiv:2102.07623): parameters and statistics of batch normalisation stay at
  the site; all else is averaged: ``PersonalLayers(context, batch_norm(model))``.
* FedPer (Arivazhagan et al. 2019, arXiv:1912.00818): the last layers stay at the site, and all
  layers are trained together: ``PersonalLayers(context, matching(model, "head.*"))``.
* FedRep (Collins et al. 2021, arXiv:2102.07078): as FedPer, but the site first trains the head with
  the body fixed, and then the body with the head fixed: :func:`only`.

The server is FedAvg's. An array that stays at the site goes out as it was received, so its mean is
the value of the first model. ``arrays`` in ``[compression]`` of the job leaves it out of the
updates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final

import torch
from flwr.app import ArrayRecord, Context
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlearn.app.state_dict import record_of_state_dict
from fedlearn.errors import JobError
from fedlearn.training.state import copies, keep, kept, read

__all__ = ["PersonalLayers", "batch_norm", "matching", "only"]

_OWN: Final = "fedlearn.personal"


class PersonalLayers:
    """Some arrays of a model, which stay at a site::

        personal = PersonalLayers(context, batch_norm(model))
        personal.load(model, message.content["arrays"])
        ...                                            # train
        arrays = personal.shared(model)                # for the reply

    To evaluate, :meth:`load` alone is needed.

    :param names: in ``model.state_dict()``.
    :raises JobError: when there is no name.
    """

    def __init__(self, context: Context, names: Collection[str]) -> None:
        if not names:
            raise JobError(
                "no array of the model is personal",
                hint="look at the names in model.state_dict()",
            )
        self._context = context
        self._names = frozenset(names)
        self._received: dict[str, torch.Tensor] = {}

    def load(self, model: nn.Module, arrays: ArrayRecord) -> None:
        """Load the arrays of a message into a model, and then those of the site.

        In a site's first round all are those of the message.

        :raises JobError: when they do not fit the model.
        """
        state = model.state_dict()
        if unknown := sorted(self._names - state.keys()):
            raise JobError(f"the model has no array {unknown[0]!r}, which is to be personal")
        received = read(arrays, "the model of the message", state)
        own = {name: state[name] for name in state if name in self._names}
        self._received = {name: received[name] for name in own}
        model.load_state_dict(received | (kept(self._context, _OWN, own) or {}))

    def shared(self, model: nn.Module) -> ArrayRecord:
        """Keep the site's arrays, and return an update in which they are as they were received.

        :raises JobError: when :meth:`load` was not called.
        """
        if not self._received:
            raise JobError("no model was loaded", hint="call load() before the training")
        state = copies(model.state_dict())
        keep(self._context, _OWN, {name: state[name] for name in self._received})
        return record_of_state_dict(state | self._received)


def batch_norm(model: nn.Module) -> frozenset[str]:
    """Return the names of all arrays of a model's batch normalisations: weights and statistics.

    >>> sorted(batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    ['1.bias', '1.num_batches_tracked', '1.running_mean', '1.running_var', '1.weight']
    """
    return frozenset(
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name in module.state_dict()
    )


def matching(model: nn.Module, *patterns: str) -> frozenset[str]:
    """Return the names of the arrays of a model that match patterns as of a shell.

    >>> sorted(matching(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "1.*"))
    ['1.bias', '1.weight']

    :raises JobError: for a pattern that matches none.
    """
    names = list(model.state_dict())
    found: set[str] = set()
    for pattern in patterns:
        some = [name for name in names if fnmatchcase(name, pattern)]
        if not some:
            raise JobError(
                f"no array of the model matches {pattern!r}; it has {', '.join(names[:5])}"
            )
        found.update(some)
    return frozenset(found)


@contextmanager
def only(model: nn.Module, names: Collection[str]) -> Iterator[list[nn.Parameter]]:
    """Let the parameters with these names be trained and no other; yields them.

    FedRep trains the head, and then the body::

        head = matching(model, "head.*")
        with only(model, head) as parameters:
            train(model, torch.optim.SGD(parameters, lr=0.01), epochs=5)
        with only(model, set(model.state_dict()) - head) as parameters:
            train(model, torch.optim.SGD(parameters, lr=0.01), epochs=1)

    :raises JobError: when none of them is a parameter that was to be trained.
    """
    before = {each: each.requires_grad for each in model.parameters()}
    chosen = [each for name, each in model.named_parameters() if name in names and before[each]]
    if not chosen:
        raise JobError("none of the named arrays is a parameter that is trained")
    try:
        for each in before:
            each.requires_grad_(False)
        for each in chosen:
            each.requires_grad_(True)
        yield chosen
    finally:
        for each, needs in before.items():
            each.requires_grad_(needs)
