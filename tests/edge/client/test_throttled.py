"""A client that was throttled was not examined, and asks again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from attestation.policy.parse import parse_policy
from edge.client import runner
from edge.protocol.bootstrap import Bootstrap
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import AdmissionDenied, FedlearnError, Throttled, TransportError
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec

POLICY = 'accept = ["sample"]\ninsecure_sample = true\n'
JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'


class Answers:
    """Raises each error in turn, then returns ``result``; ``exhausted`` is set from then on."""

    def __init__(self, errors: Sequence[FedlearnError], result: object) -> None:
        self.errors = list(errors)
        self.result = result
        self.calls = 0
        self.exhausted = threading.Event()

    def __call__(self, *_: object, **__: object) -> object:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        self.exhausted.set()
        return self.result


class Run:
    """A client of a coordinator that answers as a test asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch = monkeypatch
        self._folder = folder
        gate = SimpleNamespace(close=bool, pinned=SimpleNamespace(ca_pem=b""))
        for name, fake in {
            "_FIRST_PAUSE": 0.01,
            "_LONGEST_PAUSE": 0.02,
            "GateClient": SimpleNamespace(connect=lambda *_, **__: gate),
            "control_of": lambda *_: contextlib.nullcontext(
                SimpleNamespace(commit_data=lambda *_, **__: 1)
            ),
            "_identity": bool,
            "open_attester": lambda *_, **__: SimpleNamespace(extend=lambda *_: None),
            "protect_this_process": bool,
            "request_seed": lambda *_, **__: b"",
            "open_grant": lambda *_, **__: bytes(32),
        }.items():
            monkeypatch.setattr(runner, name, fake)

    def __call__(
        self, seek: Answers, renew: Answers | None = None, until: Callable[[], object] = bool
    ) -> tuple[Phase, list[str]]:
        """Run a client whose work ends when ``until`` returns."""
        work = SimpleNamespace(load=bool, run=lambda: str(until()), stop=bool, close=bool, renew=id)
        self._patch.setattr(runner, "seek_admission", seek)
        self._patch.setattr(runner, "renew_admission", renew)
        self._patch.setattr(runner, "WarmClient", lambda *_, **__: work)
        data = self._folder / "data"
        data.mkdir()
        (data / "rows.csv").write_text("1\n")
        reasons: list[str] = []
        phase = runner.run(
            Bootstrap(
                site="site-a",
                client="c1",
                spec=JobSpec.from_toml(JOB, policy=parse_policy(POLICY.encode())).to_json(),
                policy=POLICY,
                bundle=b"",
                gate_address="127.0.0.1:1",
                ca_pin=bytes(32),
                data=str(data),
                attester=AttesterSettings(kind="insecure-sample"),
                state=self._folder,
            ),
            SimpleNamespace(vouch=None, charge=None, grant_seed=bool),
            report=lambda _, reason: reasons.append(reason),
            stop=threading.Event(),
            scratch=self._folder / "scratch",
        )
        return phase, reasons


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return Run(monkeypatch, tmp_path)


def admitted() -> SimpleNamespace:
    return SimpleNamespace(chain=b"", fleet_address="", renew_after=datetime.now(UTC))


@pytest.mark.parametrize("error", [Throttled("too many"), TransportError("away")])
def test_admission_is_sought_again(run: Run, error: FedlearnError) -> None:
    seek = Answers([error, error], admitted())
    phase, _ = run(seek, Answers([AdmissionDenied("later")], None))
    assert phase is Phase.SUCCEEDED
    assert seek.calls == 3


def test_a_refusal_is_final(run: Run) -> None:
    seek = Answers([AdmissionDenied("no")], admitted())
    phase, reasons = run(seek)
    assert phase is Phase.REFUSED
    assert reasons == ["no"]
    assert seek.calls == 1


def test_attesting_again_is_tried_again(run: Run) -> None:
    renew = Answers([Throttled("x"), Throttled("x"), TransportError("y")], admitted())
    phase, _ = run(Answers([], admitted()), renew, until=lambda: renew.exhausted.wait(10))
    assert phase is Phase.SUCCEEDED
    assert renew.exhausted.is_set()


def test_attesting_again_is_not_tried_again_after_a_refusal(run: Run) -> None:
    renew = Answers([AdmissionDenied("no")], admitted())
    run(Answers([], admitted()), renew, until=lambda: renew.exhausted.wait(0.3))
    assert renew.calls == 1
