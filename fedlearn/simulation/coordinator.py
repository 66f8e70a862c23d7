"""The coordinator of a simulation: it hands the questions of the aggregator to simulated clients.

It has the requests of :class:`server.flower.exchange.coordinator.Coordinator`. Nobody attests, no
connection is opened and nothing is sealed. Answers are given one at a time, when the aggregator
waits for them, in an order that the schedule decides and the number of workers does not: the calls
may run ahead, and what a client keeps is taken over when its answer is handed out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedlearn.app.flower import CALL
from fedlearn.app.message import Flat, Head, read_content
from fedlearn.errors import FedlearnError
from fedlearn.job.events import KINDS, Event, Log, PrivacySpent
from fedlearn.job.seeds import node_number
from fedlearn.privacy import Budget
from fedlearn.simulation.clients.calls import Backend, ClientCall, Pending
from fedlearn.simulation.hooks import Arrays, Call, Hook, sees_rounds
from fedlearn.simulation.kept import checkpoints
from fedlearn.simulation.kept.memories import Memories
from fedlearn.simulation.messages import Answer, Question, as_answer
from fedlearn.simulation.schedule import Schedule
from fedlearn.update.frames import frames_length
from server.flower.exchange.coordinator import Node
from server.flower.job_plan import Checkpoint, JobPlan, Reply

__all__ = ["Report", "SimulatedCoordinator"]

Report = Callable[[Event], object]
"""Takes an event of the job."""

_FROM_SITES: Final = "update.received"


class SimulatedCoordinator:
    """One run of one job. Not thread-safe.

    :param data: the folder of each site's data; a site without one has none.
    :param backend: where clients run.
    :param report: takes the events of the job.
    :param wrote: takes what the app wrote at a site: the site, and a line.
    :param checkpoint: the file of the last checkpoint.
    """

    def __init__(
        self,
        plan: JobPlan,
        *,
        data: Mapping[str, Path],
        backend: Backend,
        schedule: Schedule,
        hooks: Sequence[Hook],
        memories: Memories,
        report: Report,
        wrote: Callable[[str, str], object],
        checkpoint: Path,
        kept: checkpoints.Kept | None = None,
    ) -> None:
        spec = plan.spec
        self._plan = plan
        self._data = {site: str(path) for site, path in data.items()}
        self._backend = backend
        self._schedule = schedule
        self._hooks = hooks
        self._sees_rounds = any(map(sees_rounds, hooks))
        self._memories = memories
        self._report = report
        self._wrote = wrote
        self._checkpoint = checkpoint
        self._kept = kept
        self._nodes = {
            site: Node(number=node_number(plan.digest, site), site=site) for site in spec.sites
        }
        self._sites = {node.number: site for site, node in self._nodes.items()}
        self._places = {site: index for index, site in enumerate(spec.sites)}
        self._live = dict.fromkeys(spec.sites, 0)
        self._open: dict[str, tuple[Question, Call]] = {}
        self._running: dict[str, Pending] = {}
        self._busy: dict[str, str] = {}
        self._answered: dict[str, Answer] = {}
        self._sizes: dict[str, int] = {}
        self._sent = self._received = 0
        self._began = 0.0
        releases = 0 if kept is None else kept.releases
        privacy = spec.privacy
        self._budget = (
            None
            if privacy is None
            else Budget(privacy, {each: each for each in range(1, releases + 1)})
        )
        if kept is not None:
            schedule.restore(kept.clock)
        self.rounds = 0
        self.model: Checkpoint | None = None if kept is None else kept.checkpoint
        self.files: dict[str, bytes] = {}

    # --- questions and answers -----------------------------------------------------------

    def push(self, flat: Flat) -> list[str]:
        """Take questions; a site is always there to be asked."""
        calls: dict[str, int] = {}
        for data in flat.messages:
            head = Head.from_bytes(data)
            question = Question(head, [data, *(flat.objects[name] for name in head.parts)])
            site = self._sites[head.receiver]
            shared = head.parts[0]
            if shared not in calls:
                calls[shared] = _round_of(flat.objects[shared], len(head.parts) - 1)
            call = Call(site=site, round=calls[shared], kind=head.kind)
            self._open[head.id] = (question, call)
            size = frames_length(question.frames)
            self._sent += size
            self._schedule.asked(head.id, call, size=size)
        return list(flat.ids)

    def pull(self, ids: Collection[str], seconds: float) -> deque[Reply]:
        """Return the next answer; none where none arrives within ``seconds``."""
        replies: deque[Reply] = deque()
        id_ = self._schedule.next(ids, seconds)
        if id_ is None:
            return replies
        question, call = self._open[id_]
        if self._sees_rounds and call.kind.split(".")[0] == "train" and id_ not in self._answered:
            self._answer_round(id_)
        answer = self._answered.pop(id_, None) or self._answer(id_)
        del self._open[id_]
        size = frames_length(answer.frames)
        self._received += size
        self._sizes[id_] = size
        head = as_answer(question.head, answer)
        replies.append(
            Reply(
                question=id_,
                site=call.site,
                node=question.head.receiver,
                message=head.to_bytes(),
                objects=dict(zip(head.parts, answer.frames[1:], strict=True)),
                size=size,
            )
        )
        return replies

    def forget(self, ids: Iterable[str]) -> None:
        """Withdraw questions; what such a call would have left at its client is dropped."""
        gone = list(ids)
        self._schedule.forgotten(gone)
        for id_ in gone:
            found = self._open.pop(id_, None)
            self._running.pop(id_, None)
            self._answered.pop(id_, None)
            if found is not None and self._busy.get(found[1].site) == id_:
                del self._busy[found[1].site]

    def _answer(self, id_: str) -> Answer:
        """Make the call of a question, and start others that may run beside it."""
        pending = self._running.get(id_) or self._submit(id_)
        for other in self._open:
            if len(self._running) >= self._backend.capacity:
                break
            if other not in self._running and other not in self._answered:
                self._submit_if_free(other)
        result = pending.result()
        self._running.pop(id_, None)
        question, call = self._open[id_]
        del self._busy[call.site]
        self._memories.put(self._places[call.site], result.memory)
        for line in result.lines:
            self._wrote(call.site, line)
        return self._seen(question, call, Answer(result.frames))

    def _submit_if_free(self, id_: str) -> None:
        """Start a call unless an earlier one of its client is open: it needs what that leaves."""
        if self._open[id_][1].site not in self._busy:
            self._submit(id_)

    def _submit(self, id_: str) -> Pending:
        question, call = self._open[id_]
        if (before := self._busy.get(call.site)) is not None and before != id_:
            # The schedule answers a later question of this client first.
            del self._busy[call.site]
            self._running.pop(before, None)
        asked = question
        for hook in self._hooks:
            if type(hook).asked is Hook.asked:
                continue
            arrays = asked.arrays()
            changed = hook.asked(call, arrays)
            if changed is not arrays:
                asked = asked.with_arrays(changed)
        if asked is not question:
            self._open[id_] = (asked, call)
        place = self._places[call.site]
        pending = self._backend.submit(
            ClientCall(
                site=call.site,
                index=place,
                data=self._data.get(call.site, ""),
                node=question.head.receiver,
                id=id_,
                frames=asked.frames,
                memory=self._memories.get(place),
            )
        )
        self._busy[call.site] = id_
        self._running[id_] = pending
        return pending

    def _seen(self, question: Question, call: Call, answer: Answer) -> Answer:
        """Show an answer to the hooks; return what they make of it."""
        compression = self._plan.spec.compression
        for hook in self._hooks:
            if type(hook).answered is Hook.answered or answer.failed:
                continue
            asked = question.arrays()
            arrays = answer.arrays(asked, compression)
            changed = hook.answered(call, asked, arrays, answer.metrics())
            if changed is not arrays:
                answer = answer.with_arrays(changed, asked, compression)
        return answer

    def _answer_round(self, id_: str) -> None:
        """Make all calls of a round, and show its updates to the hooks together."""
        round_, kind = self._open[id_][1].round, self._open[id_][1].kind
        together = [
            each
            for each, (_, call) in self._open.items()
            if (call.round, call.kind) == (round_, kind)
        ]
        for each in together:
            self._answered[each] = self._answer(each)
        compression = self._plan.spec.compression
        for hook in filter(sees_rounds, self._hooks):
            arrays: dict[str, Arrays] = {}
            places: dict[str, str] = {}
            for each in together:
                question, call = self._open[each]
                if not self._answered[each].failed:
                    arrays[call.site] = self._answered[each].arrays(question.arrays(), compression)
                    places[call.site] = each
            changed = hook.round_answered(round_, arrays)
            for site, found in changed.items():
                if found is not arrays[site]:
                    each = places[site]
                    asked = self._open[each][0].arrays()
                    self._answered[each] = self._answered[each].with_arrays(
                        found, asked, compression
                    )

    # --- sites ---------------------------------------------------------------------------

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]:
        """Return the nodes of the sites that the schedule has online."""
        sites = self._plan.spec.sites
        found = self._schedule.online(sites)
        if len(found) < count and seconds > 0:
            self._schedule.wait_online(sites, count, seconds)
            found = self._schedule.online(sites)
        return [self._nodes[site] for site in found]

    def live_sites(self) -> dict[str, int]:
        """Return all sites: none is attested, and none commits to a number of examples."""
        return self._live

    def traffic(self) -> tuple[int, int]:
        """Return the bytes that were sent to clients and received from them."""
        return self._sent, self._received

    # --- events --------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        """Report an event."""
        if kind == _FROM_SITES:
            fields["bytes"] = self._sizes.pop(fields.pop("question"), 0)
        elif kind == "round.started":
            self._began = time.monotonic()
        elif kind == "round.finished" and not self._schedule.timed:
            fields["seconds"] = time.monotonic() - self._began
        self._report(KINDS[kind](**fields))

    def note(self, kind: str, **fields: Any) -> None:
        """Report an event."""
        self.event(kind, **fields)

    def log(self, line: str, *, level: str = "info") -> None:
        """Report a line of the ServerApp."""
        self._report(Log(line=line, level=level))

    # --- what lasts ----------------------------------------------------------------------

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        """Charge the budget of the job; see :class:`fedlearn.privacy.Budget`."""
        assert self._budget is not None
        spent = self._budget.charge(self._budget.releases + 1, round_)
        self._report(
            PrivacySpent(
                round=round_,
                epsilon=spent.epsilon,
                delta=spent.delta,
                unit=spent.spec.unit,
                sampling=spent.spec.sampling_text,
                accountant=spent.spec.accountant,
                limit=self._budget.spec.epsilon,
            )
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, in plaintext; it is durable when this returns."""
        kept = checkpoints.Kept(
            checkpoint=checkpoint,
            memories=self._memories.sync(),
            releases=0 if self._budget is None else self._budget.releases,
            clock=self._schedule.state(),
        )
        checkpoints.write(self._checkpoint, kept)
        self._memories.committed()
        self.model = checkpoint

    def settle(self) -> None:
        """Every checkpoint is durable already."""

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        """Keep the files that the ServerApp leaves."""
        self.files = {name: bytes(data) for name, data in files.items()}

    def load(self) -> Checkpoint | None:
        """Return the checkpoint with which the run goes on."""
        return None if self._kept is None else self._kept.checkpoint

    def done(self, *, rounds: int, error: FedlearnError | None = None) -> None:
        """Note how many rounds there were."""
        self.rounds = rounds


def _round_of(content: Any, parts: int) -> int:
    """Return the number of the round in a content."""
    for record in read_content(bytes(content), parts):
        if record.name == CALL:
            return int(record.values["round"])
    return 0
