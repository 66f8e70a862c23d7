"""The site's part of FedNova (Wang et al. 2020, arXiv:2007.07481): the norm of its steps.

The update of a site is ``y - x = -sum_k a_k g_k`` for the gradients ``g_k`` of its steps, and the
server divides it by ``|a|``, the sum of the weights ``a_k``. That sum is how far the optimiser
moves a weight whose gradient is always 1, so it is computed by the optimiser's own recursion. With
the learning rate ``eta`` and ``tau`` steps of SGD it is ``eta tau``; with the momentum ``rho``

    eta / (1 - rho) (tau - rho (1 - rho^tau) / (1 - rho))

and with a proximal term ``mu`` it is ``(1 - (1 - eta mu)^tau) / mu``. The paper has them without
``eta``, a factor that drops out of the next model.
"""

from __future__ import annotations

from typing import Any

from torch.optim import SGD, Optimizer

from fedlearn.app.algorithm_names import FEDNOVA_NORM
from fedlearn.errors import JobError
from fedlearn.training.steps import Steps

__all__ = ["FedNova"]


class FedNova:
    """The norm of the steps of one round::

        nova = FedNova()
        nova.attach(optimizer)                         # torch.optim.SGD
        ...                                            # train
        metrics = {"num-examples": examples, **nova.finish()}

    Momentum, dampening, Nesterov's variant and schedules of the learning rate are taken from the
    optimiser. Weight decay is part of the gradient.

    :param mu: of a :class:`fedlearn.training.Proximal` that is attached as well.
    """

    def __init__(self, *, mu: float = 0.0) -> None:
        self._mu = mu
        self._moved = self._velocity = 0.0
        self._optimizer: Optimizer | None = None
        self._steps: Steps | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Follow the steps of an optimiser from now on.

        :raises JobError: when it is not ``torch.optim.SGD``, its groups differ in learning rate
            or momentum, or another one is attached.
        """
        if self._steps is not None:
            raise JobError("an optimiser is attached already; a round has one")
        if not isinstance(optimizer, SGD):
            raise JobError(
                f"{type(optimizer).__name__} is not linear in the gradients, so its steps have no "
                "norm",
                hint="FedNova is for torch.optim.SGD",
            )
        self._optimizer = optimizer
        self._momentum()
        self._steps = Steps(optimizer, self._step)

    def finish(self) -> dict[str, float]:
        """Return the metrics that the reply must have.

        :raises JobError: when no step was made.
        """
        if self._steps is None:
            raise JobError("no optimiser was attached", hint="call attach() before the training")
        self._steps.check_any()
        return {FEDNOVA_NORM: self._moved}

    def _momentum(self) -> tuple[float, float, bool]:
        assert self._optimizer is not None
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        found = {(each["momentum"], each["dampening"], each["nesterov"]) for each in groups}
        if len(found) != 1:
            raise JobError(
                "the groups of the optimiser have different momentum; FedNova has one norm",
                hint="give all groups of parameters the same momentum",
            )
        return found.pop()

    def _step(self, rate: float) -> None:
        assert self._steps is not None
        momentum, dampening, nesterov = self._momentum()
        gradient = 1 - self._mu * self._moved
        if momentum:
            # torch's first step is not dampened.
            damped = gradient if self._steps.count == 1 else (1 - dampening) * gradient
            self._velocity = momentum * self._velocity + damped
            gradient = gradient + momentum * self._velocity if nesterov else self._velocity
        self._moved += rate * gradient
