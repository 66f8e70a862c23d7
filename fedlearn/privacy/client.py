"""The client's side, inside its TEE: a site's update is clipped before it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedlearn.privacy.chain import Chain, Clip
from fedlearn.privacy.difference import add_back_towards, difference
from fedlearn.privacy.spec import PrivacySpec
from fedlearn.update.arrays import Array, check_like

__all__ = ["ClientPrivacy"]

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPrivacy:
    """Prepares an update of a client to leave it.

    The norm before clipping is not reported: it is computed from the data, and no noise is added
    to it.
    """

    spec: PrivacySpec
    chain: Chain

    @classmethod
    def from_spec(cls, spec: PrivacySpec) -> ClientPrivacy:
        """Return the client's side of ``spec``."""
        return cls(spec=spec, chain=Chain((Clip(spec.clip),)))

    def outgoing(
        self, update: Mapping[str, Array], reference: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return what may leave: ``reference`` plus the clipped ``update - reference``.

        ``reference`` is the global model that the client received. The result has its names,
        types and shapes, and differs from it by an L2 norm of at most ``spec.clip`` over all
        arrays together, exactly: numbers are rounded towards the reference. Arrays that are
        not floating-point are not changed. The inputs are not changed.

        Raises :class:`fedlearn.errors.UpdateRejected` when the update does not match the
        reference, :class:`fedlearn.errors.PrivacyError` when it contains NaN or infinity.
        """
        check_like(update, reference)
        clipped = self.chain.apply(difference(update, reference))
        return add_back_towards(clipped, reference)

    def outgoing_weight(self, examples: int) -> int:
        """Return 1, the weight of every site.

        A mean weighted by numbers of examples would let a site move it by more than the
        sensitivity allows, and the number itself is private.
        """
        del examples
        return 1

    def outgoing_metrics(self, metrics: Mapping[str, Value]) -> dict[str, Value]:
        """Return the metrics that may leave: none, unless the job names the insecure option.

        A loss is computed from the data without noise. With ``insecure_exact_metrics`` all metrics
        leave unchanged, and the guarantee does not cover them.
        """
        return dict(metrics) if self.spec.insecure_exact_metrics else {}
