"""Evidence through the Attestation Agent of Confidential Containers, and how one is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.attesters import azure, ccnp, coco, hardware, tpm, tsm
from attestation.attesters.coco import CocoAttester
from attestation.attesters.hardware import detect, open_hardware
from attestation.attesters.kinds import KINDS, Options
from attestation.errors import AttesterError
from attestation.evidence import Tee
from tests.fakes import coco_agent
from tests.vectors.cases import binding
from tests.vectors.domain import boot_log, judged, quote
from tests.vectors.intel import APP, JOB


@pytest.fixture
def agent() -> Iterator[coco_agent.CocoAgent]:
    with coco_agent.CocoAgent(quote=quote, log=boot_log()) as running:
        yield running


def test_the_agent_measures_into_rtmr3(agent: coco_agent.CocoAgent) -> None:
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert any(claims.measurements["rtmr3"])
    assert all(len(text) == 64 for text in agent.asked)


def test_an_agent_without_a_register_leaves_it_to_us(agent: coco_agent.CocoAgent) -> None:
    agent.aael = False
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    claims = judged(attester.collect(binding()))
    assert claims.measurements["app"] == APP
    assert not any(claims.measurements["rtmr3"])


def test_an_agent_that_forgets_a_measurement_is_noticed(agent: coco_agent.CocoAgent) -> None:
    agent.forget = True
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    with pytest.raises(AttesterError, match="does not have app"):
        attester.collect(binding())


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"not json", "not JSON"),
        (b"[]", "not an object"),
        (b'{"attestation_report": {}}', "not a quote"),
        (b'{"hcl_report": "", "tpm_quote": {}}', "Azure"),
        (b'{"quote": 1}', "not text"),
        (b'{"quote": "@"}', "not base64"),
        (b'{"quote": "", "cc_eventlog": "AAAA"}', "log"),
    ],
)
def test_other_answers_of_an_agent_are_errors(
    agent: coco_agent.CocoAgent, answer: bytes, word: str
) -> None:
    agent.answer = answer
    with pytest.raises(AttesterError, match=word):
        CocoAttester(agent.address)


def test_an_agent_that_fails_or_is_remote_is_an_error(agent: coco_agent.CocoAgent) -> None:
    agent.status = 500
    with pytest.raises(AttesterError, match="500"):
        CocoAttester(agent.address)
    with pytest.raises(AttesterError, match="loopback"):
        CocoAttester("192.0.2.1:8006")
    with pytest.raises(AttesterError, match="does not answer"):
        CocoAttester("127.0.0.1:1")


def test_detection_states_why(tmp_path: Path, agent: coco_agent.CocoAgent) -> None:
    assert [found.kind for found in detect()] == [kind.name for kind in KINDS]
    nothing = (
        tsm.find(tmp_path / "none"),
        ccnp.find(()),
        coco.find("127.0.0.1:1"),
        azure.find(tmp_path / "none", ()),
        tpm.find(()),
    )
    assert [found.kind for found in nothing] == [kind.name for kind in KINDS]
    assert all(not found.present and found.why for found in nothing)
    tag = tmp_path / "tag"
    tag.write_text("7783-7084-3265-9085-8269-3286-77\n")
    assert "without a vTPM" in azure.find(tag, ()).why
    device = tmp_path / "tpmrm0"
    device.touch()
    everything = (
        tsm.find(tmp_path),
        ccnp.find((device,)),
        coco.find(agent.address),
        azure.find(tag, (device,)),
        tpm.find((device,)),
    )
    assert all(found.present and found.why for found in everything)


def test_auto_takes_the_strongest_that_works_and_states_why(
    tmp_path: Path, agent: coco_agent.CocoAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (
        tsm.find(tmp_path / "none"),
        ccnp.find((tmp_path,)),
        coco.find(agent.address),
        azure.find(tmp_path / "none", ()),
        tpm.find(()),
    )
    monkeypatch.setattr(hardware, "detect", lambda: found)
    monkeypatch.setattr(coco, "DEFAULT_ADDRESS", agent.address)
    reported: list[str] = []
    options = Options(state=tmp_path)
    attester = open_hardware("auto", options, report=reported.append)
    assert attester.tee is Tee.TDX
    assert "attesting with coco" in reported[0]
    assert "not tsm" in reported[0]
    agent.status = 500
    with pytest.raises(AttesterError, match="nothing here can attest") as refused:
        open_hardware("auto", options)
    assert all(kind.name in str(refused.value) for kind in KINDS)
    assert "insecure" in refused.value.hint
    with pytest.raises(AttesterError, match="none of"):
        open_hardware("magic", options)
