"""The calls of ``fedlearn.v1.Operator`` for sealed models and the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from fedlearn.wire import fedlearn_pb2 as pb
from server.rpc.guard import Caller
from server.rpc.results.ledger import LedgerSender
from server.rpc.results.models import ModelSender
from server.store.models import StoredModel

__all__ = ["OperatorResults"]


class OperatorResults:
    """Bodies of the calls; an operator sees the models of all jobs, each still sealed."""

    _models: ModelSender
    _ledger: LedgerSender

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.SealedModel]:
        """Return the versions of models that are kept."""
        return self._models.listed(request.job, _anything)

    def DownloadModel(  # noqa: N802
        self, request: pb.DownloadModelRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.ModelPart]:
        """Send one sealed file."""
        return self._models.parts(request, _anything, stop)

    def ReadLedger(  # noqa: N802
        self, request: pb.ReadLedgerRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.LedgerEntries]:
        """Send the entries of the ledger."""
        return self._ledger.pages(request, stop)

    def GetLedgerHead(self, request: pb.Empty, caller: Caller) -> pb.SignedLedgerHead:  # noqa: N802
        """Return where the ledger ends, and its key."""
        return self._ledger.head()


def _anything(_: StoredModel) -> bool:
    return True
