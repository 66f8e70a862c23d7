"""Sealed models on the wire: which there are, and the bytes of one.

What is sent is ciphertext, as it is on the disk. A download holds an open file and no lock, so
that sealing, pruning and rotation go on beside it, and it ends with the version that it began
with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from fedlearn.errors import JobError, StoreError
from fedlearn.job.model_name import is_of_job, run_of_model
from fedlearn.wire import fedlearn_pb2 as pb
from server.store.models import ModelStore, StoredModel

__all__ = ["ModelSender"]

_CHUNK: Final = 1024 * 1024

Visible = Callable[[StoredModel], bool]
"""Whether the caller may see a version."""


class ModelSender:
    """Sends the models of a store."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def listed(self, job: str, visible: Visible) -> Iterator[pb.SealedModel]:
        """Yield the versions that are kept and ``visible``, of ``job`` or (empty) of all.

        ``NAME`` stands for all runs of a job, ``NAME@N`` and the id of a run for that run. Models
        that were kept when their run was deleted are listed too.

        :raises ConfigError: when ``job`` names neither.
        """
        for stored in self._store.kept():
            if visible(stored) and (not job or is_of_job(stored.job, job)):
                yield _model(stored)

    def parts(
        self, request: pb.DownloadModelRequest, visible: Visible, stop: threading.Event
    ) -> Iterator[pb.ModelPart]:
        """Yield the description of one sealed file, then its bytes, until ``stop`` is set.

        :raises JobError: when there is no such version that is ``visible`` to the caller, it is
            sealed for the coordinator alone, or the file ends early.
        """
        stored = self._found(request, visible)
        if not stored.recipients:
            raise JobError(
                f"{stored.model}, version {stored.version}, is sealed for the coordinator alone",
                hint="name an owner_key in the job, or run `fedlearn model export` at the "
                "coordinator",
            )
        try:
            stored, file = self._store.open_file(stored.model, stored.version)
        except StoreError as error:
            raise JobError(str(error), hint=error.hint) from error
        with file:
            resumed = request.file_id == stored.file_id and request.offset <= stored.size
            offset = request.offset if resumed else 0
            yield pb.ModelPart(file=pb.SealedFile(model=_model(stored), offset=offset))
            file.seek(offset)
            while offset < stored.size and not stop.is_set():
                data = file.read(min(_CHUNK, stored.size - offset))
                if not data:
                    raise JobError(
                        f"{stored.model}, version {stored.version}: the file has {offset} bytes, "
                        f"and {stored.size} were sealed",
                        hint="run `fedlearn model verify` at the coordinator",
                    )
                offset += len(data)
                yield pb.ModelPart(data=data)

    def _found(self, request: pb.DownloadModelRequest, visible: Visible) -> StoredModel:
        """Return the version, of the newest run where several have the name.

        What the caller may not see is as what is not there.
        """
        runs: dict[int, list[StoredModel]] = {}
        for stored in self._store.kept():
            if visible(stored) and (run := run_of_model(stored.model, request.model)):
                runs.setdefault(run, []).append(stored)
        if not runs:
            raise JobError(
                f"there is no model {request.model[:80]!a}",
                hint="`fedlearn model list` names the models",
            )
        kept = runs[max(runs)]
        if not request.version:
            return kept[-1]
        for stored in kept:
            if stored.version == request.version:
                return stored
        raise JobError(
            f"{kept[-1].model} has no version {request.version}",
            hint=f"kept are {kept[0].version} to {kept[-1].version}",
        )


def _model(stored: StoredModel) -> pb.SealedModel:
    return pb.SealedModel(
        model=stored.model,
        version=stored.version,
        job=stored.job,
        round=stored.round,
        bytes=stored.size,
        digest=stored.digest,
        file_id=stored.file_id,
        owners=list(stored.recipients),
    )
