"""The client's side, inside its TEE: a site's update is clipped before it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fedlearn.privacy.chain import Chain, Clip, l2_norm
from fedlearn.privacy.difference import add_back, add_back_towards, difference, is_floating
from fedlearn.privacy.noise import GaussianStream, round_bytes
from fedlearn.privacy.shares import ClientNoise
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
    secret: bytes = field(default=b"", repr=False)

    @classmethod
    def from_spec(cls, spec: PrivacySpec, secret: bytes = b"") -> ClientPrivacy:
        """Return the client's side of ``spec``.

        ``secret`` is from :func:`fedlearn.privacy.noise_secret`, for the mechanisms whose noise
        the clients add. Raises :class:`fedlearn.errors.PrivacyError` where it is needed and has
        fewer than 32 bytes.
        """
        if spec.noised_by_clients:
            GaussianStream(secret)
        return cls(spec=spec, secret=secret)

    def outgoing(
        self,
        update: Mapping[str, Array],
        reference: Mapping[str, Array],
        *,
        clip: float | None = None,
        round: int = 0,  # noqa: A002 the word for it everywhere else
    ) -> dict[str, Array]:
        """Return what may leave: ``reference`` plus the clipped ``update - reference``.

        ``reference`` is the global model that the client received. The result has its names,
        types and shapes. Arrays that are not floating-point are not changed, nor are the inputs.

        Without noise of its own, the result differs from the reference by an L2 norm of at most
        ``clip`` (None: that of the spec) over all arrays together, exactly: numbers are rounded
        towards the reference. With noise, the client's noise for ``round`` is added to every
        number before it is rounded; the same difference gets the same noise.

        Raises :class:`fedlearn.errors.UpdateRejected` when the update does not match the
        reference, :class:`fedlearn.errors.PrivacyError` when it contains NaN or infinity.

        Where the app clips and adds the noise (``dp-sgd``), its numbers leave as they are.
        """
        check_like(update, reference)
        if self.spec.noised_by_app:
            l2_norm(difference(update, reference))
            return {
                name: update[name] if is_floating(base) else base.copy()
                for name, base in reference.items()
            }
        chain = Chain((Clip(self.spec.clip if clip is None else clip),))
        clipped = chain.apply(difference(update, reference))
        if not self.spec.noised_by_clients:
            return add_back_towards(clipped, reference)
        noise = ClientNoise.of(self.spec, reference)
        step = noise.step(self.secret, b"client" + round_bytes(round))
        return add_back(step.apply(clipped), reference)

    def within(
        self, update: Mapping[str, Array], reference: Mapping[str, Array], clip: float
    ) -> bool:
        """Return whether the difference is within ``clip`` as it is.

        It may leave the client as one bit of :mod:`fedlearn.privacy.adaptive` only. Raises as
        :meth:`outgoing`.
        """
        check_like(update, reference)
        return l2_norm(difference(update, reference)) <= clip

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
