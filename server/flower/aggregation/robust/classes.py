"""The strategies that Flower does not have, as classes with their options: see the rules."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import FedAvg

__all__ = ["FLTrust", "GeometricMedian", "NormClipping"]


class GeometricMedian(FedAvg):  # type: ignore[misc]
    """FedAvg with the geometric median of the updates in place of their mean.

    RFA, Pillutla et al. 2022 (arXiv:1912.13445). The result stays within bounds while less than
    half of the updates are malicious, wherever these are.

    ``iterations``  the most of Weiszfeld's algorithm; each costs ``n^2`` operations
    ``smoothing``   the distance below which an update's weight does not grow further
    ``tolerance``   the iterations end when the updates' shares, which sum to 1, move by less
    """

    def __init__(
        self,
        *,
        iterations: int = 100,
        smoothing: float = 1e-6,
        tolerance: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.iterations = iterations
        self.smoothing = smoothing
        self.tolerance = tolerance


class NormClipping(FedAvg):  # type: ignore[misc]
    """FedAvg with every update clipped to a norm, and each counting the same.

    Sun et al. 2019 (arXiv:1911.07963), section 4. One site moves the next model by at most
    ``clip_norm / n``, whatever it sends and however many examples it states.

    ``clip_norm``  of the difference from the model, over all arrays; None for the median of the
                   round's norms, which stays among those of honest sites while less than half
                   are malicious
    """

    def __init__(self, *, clip_norm: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.clip_norm = clip_norm


class FLTrust(FedAvg):  # type: ignore[misc]
    """FedAvg with every update weighed by its likeness to that of a trusted site.

    Cao et al. 2021 (arXiv:2012.13995), algorithm 2. The result stays within bounds for any number
    of malicious sites, as long as the data of the trusted one are like those of the others.

    ``root_site``             the trusted site, which trains on the root data
    ``server_learning_rate``  what the aggregated difference is multiplied by
    """

    def __init__(
        self, *, root_site: str, server_learning_rate: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root_site = root_site
        self.server_learning_rate = server_learning_rate
