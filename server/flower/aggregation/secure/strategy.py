"""A strategy of the mean family over masked updates.

A round has five stages (Bell et al. 2020, https://eprint.iacr.org/2020/704, algorithm 3):

=============  ======================================  ==========================================
stage          each client gets                        and answers
=============  ======================================  ==========================================
``advertise``  the session                             its keys, signed
``share``      the keys of all clients                 shares of its secrets, sealed to each
                                                       neighbour
``receive``    the shares that are sealed to it        nothing
to train       the model                               its masked update
``unmask``     whose masked updates have arrived       shares of the secrets that unmask their sum
=============  ======================================  ==========================================

A client that does not answer a stage is left out of the later ones. The sum is added when masked
updates arrive, modulo a power of two, so that it is exact and the same in any order. Everything
before the last stage discloses nothing, so that a round which loses a site until then is run again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp.grid import Grid

from fedlearn.app.array_records import arrays_of, records_of
from fedlearn.app.flower import MASKED
from fedlearn.errors import QuorumNotReached, UpdateRejected
from fedlearn.job.spec import JobSpec
from fedlearn.secure_aggregation import messages as bodies
from fedlearn.secure_aggregation.fixed_point import Vector, length, mean, word, zeros
from fedlearn.secure_aggregation.roster import SESSION_BYTES, PublicKeys, Session
from fedlearn.secure_aggregation.server import ServerSession
from fedlearn.secure_aggregation.spec import LEAST_CLIENTS
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.secure.stages import Stages

__all__ = ["SecureMean"]


class SecureMean(BuiltIn):
    """A strategy of :data:`fedlearn.job.strategies.MASKED` over masked updates.

    No metric of a site reaches it, and no site evaluates: a loss is computed from the data.
    """

    transient = BuiltIn.transient | {"_job", "_secagg", "_session", "_stages"}

    def __init__(self, name: str, options: Mapping[str, Any], spec: JobSpec) -> None:
        super().__init__(name, options)
        self._job = spec
        self._secagg = spec.aggregation.secagg
        self._session: ServerSession | None = None
        self._stages: Stages | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes, set up a session with them, and make messages for those that are in it.

        :raises QuorumNotReached: when too few clients are left for a sum.
        """
        found = list(super().configure_train(server_round, arrays, config, grid))
        ours = cast("JobGrid", grid)
        nodes = {ours.site(each.metadata.dst_node_id): each for each in found}
        ready = self._set_up(server_round, ours, nodes)
        ours.validator.masked = {MASKED: ({str(word(self._secagg))}, (length(self._model),))}
        return [nodes[site] for site in ready]

    def _set_up(
        self, server_round: int, grid: JobGrid, asked: Mapping[str, Message]
    ) -> Sequence[str]:
        """Run the stages before training; return the sites that can mask their updates."""
        session = Session(
            job=self._job.digest(), round=server_round, id=secrets.token_bytes(SESSION_BYTES)
        )
        nodes = {site: each.metadata.dst_node_id for site, each in asked.items()}
        stages = Stages(grid, nodes, session.id, timeout=self._job.deadline_s)
        advertised: list[PublicKeys] = []

        def advertise(site: str, body: bytes) -> None:
            advertised.append(bodies.read_keys(body, site))

        sites = stages.ask("advertise", dict.fromkeys(nodes, b""), advertise)
        self._check_left(sites, asked)
        server = ServerSession(self._secagg, session, advertised, self._job.sites)
        rosters = {
            site: bodies.write_roster(server.roster.keys, server.neighbours(site))
            for site in server.roster.sites
        }

        def share(site: str, body: bytes) -> None:
            server.shared(site, *bodies.read_shares(body))

        sites = stages.ask("share", rosters, share)
        self._check_left(sites, asked)
        sealed = {site: bodies.write_numbered(server.sealed_to(site)) for site in sites}
        sites = stages.ask("receive", sealed, lambda site, body: None)
        self._check_left(sites, asked)
        self._session, self._stages = server, stages
        return sites

    def _check_left(self, sites: Sequence[str], asked: Mapping[str, Message]) -> None:
        self._check_quorum(len(sites), len(asked))
        if len(sites) < LEAST_CLIENTS:
            raise QuorumNotReached(
                f"{len(sites)} of {len(asked)} clients are left, and secure aggregation needs "
                f"{LEAST_CLIENTS}",
                hint="the events of this round name what happened to the others",
            )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no site to evaluate: a metric of one site would be disclosed."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model, made of the unmasked sum."""
        session, total, asked = self._session, zeros(self._secagg, self._model), 0
        assert session is not None
        for message in replies:
            asked += 1
            if message.has_error():
                continue
            try:
                vector = self._vector(message)
                session.masked(self._site(message))
                total += vector
            except UpdateRejected as error:
                self._refuse(message, str(error))
        log(INFO, "aggregate_train: added %s of %s masked updates", len(session.survivors), asked)
        self._check_quorum(len(session.survivors), asked)
        if self._grid is not None:
            self._grid.updates.check_contributors()  # the last moment before the sum is disclosed
        found, weight = mean(
            self._secagg, self._unmasked(session, total), self._model, len(session.survivors)
        )
        log(INFO, "aggregate_train: unmasked the sum of %s examples", weight)
        return self._optimised(server_round, found), None

    def _unmasked(self, session: ServerSession, total: Vector) -> Vector:
        """Run the last stage; return the sum of the updates."""
        survivors = [session.roster.sites[each] for each in session.survivors]
        body = bodies.write_numbers(session.survivors)

        def reveal(site: str, data: bytes) -> None:
            session.revealed(site, bodies.read_numbered(data))

        assert self._stages is not None
        # A site that has left meanwhile is not waited for once the others have given enough.
        self._stages.ask("unmask", dict.fromkeys(survivors, body), reveal, enough=session.recovered)
        found = session.unmasked(total)
        for site in session.wrong:
            self._stages.note(site, "it gave wrong shares of a secret")
        return found

    def _vector(self, message: Message) -> Vector:
        records = list(records_of(message.content, ArrayRecord).values())
        if len(records) != 1:
            raise UpdateRejected("a masked update is one ArrayRecord")
        return np.asarray(arrays_of(records[0])[MASKED])

    def _site(self, message: Message) -> str:
        (site,) = self._sites([message])
        return site
