"""Where the output of an app goes: what job and site both ask for, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.config import InconsistentValues
from edge.client.app_log import (
    AppLog,
    DiscardedAppLog,
    PlainAppLog,
    SealingAppLog,
    app_log_for,
    plain_is_possible,
)
from edge.config.site import SiteConfig
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.spec import JobSpec
from fedlearn.privacy import PrivacySpec
from fedlearn.sealing.app_log import AppLogName, open_app_log
from tests.harness.job_plans import job_plan

OWNER = X25519PrivateKey.generate()
PUBLIC = owner_key_text(OWNER.public_key().public_bytes_raw())
PLAIN = job_plan(job="alpha", sites=("north",)).spec
LOGGED = dataclasses.replace(PLAIN, owner_key=PUBLIC, app_logs="sealed")
PRIVACY = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)


def chosen(
    spec: JobSpec,
    mode: str,
    *,
    plain: bool = False,
    deliver: Callable[[SealedAppLog], object] = lambda _: None,
) -> AppLog:
    return app_log_for(spec, mode=mode, plain=plain, site="north", client="c1", deliver=deliver)


def test_a_log_is_sealed_where_job_and_site_ask_for_it() -> None:
    assert isinstance(chosen(LOGGED, "sealed"), SealingAppLog)
    for spec, mode in ((LOGGED, "off"), (PLAIN, "sealed"), (PLAIN, "off")):
        assert isinstance(chosen(spec, mode), DiscardedAppLog)
    with pytest.raises(ConfigError, match="none of off, sealed"):
        chosen(LOGGED, "loud")


def test_a_job_contradicts_itself_with_logs_and_privacy_or_without_an_owner() -> None:
    with pytest.raises(InconsistentValues, match="owner_key"):
        dataclasses.replace(LOGGED, owner_key="")
    with pytest.raises(InconsistentValues, match="no budget of"):
        dataclasses.replace(LOGGED, privacy=PRIVACY)
    # As agent and client receive it, from a coordinator that is not trusted.
    private = dataclasses.replace(PLAIN, privacy=PRIVACY, owner_key=PUBLIC)
    document = json.loads(private.to_json()) | {"app_logs": "sealed"}
    with pytest.raises(JobError, match="no budget of"):
        JobSpec.from_json(json.dumps(document))


def test_a_job_without_logs_keeps_the_digest_of_earlier_releases() -> None:
    assert "app_logs" not in PLAIN.to_json()
    assert JobSpec.from_json(LOGGED.to_json()) == LOGGED
    assert LOGGED.digest() != dataclasses.replace(LOGGED, app_logs="off").digest()


def test_each_log_has_its_place_and_rounds_without_output_have_none() -> None:
    delivered: list[SealedAppLog] = []
    log = chosen(LOGGED, "sealed", deliver=delivered.append)
    log.deliver(1)
    log.write(b"one\n")
    log.deliver(2)
    log.note("the app's process ended")
    log.deliver(3)
    assert [(each.sequence, each.round) for each in delivered] == [(0, 2), (1, 3)]
    first = delivered[0]
    name = AppLogName(
        job="alpha",
        digest=LOGGED.digest(),
        site="north",
        client="c1",
        stream=first.stream,
        round=2,
        sequence=0,
    )
    assert [line.text for line in open_app_log(first.sealed, name, OWNER).lines] == ["one"]
    other: list[SealedAppLog] = []
    again = chosen(LOGGED, "sealed", deliver=other.append)
    again.write(b"one\n")
    again.deliver(2)
    assert other[0].stream != first.stream


def test_a_plain_log_is_one_line_each_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.client.app_log._MAX_PLAIN_BYTES", 10_000)
    target = io.StringIO()
    log = PlainAppLog(target)
    log.write(b"on")
    log.write(b"e\x1b[2J\r\n" + "tw\u2028o".encode())
    log.deliver(1)
    log.note("note")
    assert target.getvalue().splitlines() == [
        "app: one\ufffd[2J",
        "app: tw\ufffdo",
        "app: ERROR fedlearn: note",
    ]
    for _ in range(1000):
        log.write(b"x" * 99 + b"\n")
    assert len(target.getvalue()) < 11_000
    assert target.getvalue().endswith("app: its output exceeds the bound; the rest is left out\n")


def test_a_plain_log_is_for_a_machine_without_secrets_only() -> None:
    sample = AttesterSettings(kind="insecure-sample")
    assert plain_is_possible(sample, in_pod=False)
    assert plain_is_possible(AttesterSettings(kind="tpm"), in_pod=False)
    assert not plain_is_possible(sample, in_pod=True)
    for kind in ("auto", "coco", "ccnp", "tsm"):
        assert not plain_is_possible(AttesterSettings(kind=kind), in_pod=False)
    assert isinstance(chosen(PLAIN, "insecure-plain", plain=True), PlainAppLog)
    for spec in (PLAIN, LOGGED):
        with pytest.raises(ConfigError, match="whoever reads the log"):
            chosen(spec, "insecure-plain")


@pytest.mark.parametrize(
    "text",
    [
        '[accept]\napp_logs = "insecure-plain"\n[attester]\nkind = "tpm"\n',
        '[accept]\napp_logs = "insecure-plain"\n',
        '[accept]\napp_logs = "insecure-plain"\n[attester]\nkind = "insecure-sample"\n'
        '[launcher]\nkind = "kubernetes"\n[kubernetes]\nworkload = "insecure-pods"\n'
        'image = "r/i@sha256:' + "0" * 64 + '"\n',
        '[accept]\napp_logs = "plain"\n',
    ],
)
def test_a_site_names_an_insecure_machine_to_show_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(f'state = "state"\n{text}')
    with pytest.raises(ConfigError, match="app_logs"):
        SiteConfig.load(path)
    path.write_text(
        'state = "state"\n[accept]\napp_logs = "insecure-plain"\n'
        '[attester]\nkind = "insecure-software-tpm"\n'
    )
    assert SiteConfig.load(path).accept.app_logs == "insecure-plain"
