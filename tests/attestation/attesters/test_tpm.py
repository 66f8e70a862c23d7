"""A real TPM flow on swtpm: measure, quote, verify, be refused."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.attesters.tpm2_tools import Tpm2CommandError, Tpm2Tools
from attestation.attesters.tpm_log import RuntimeLog
from attestation.binding import Binding
from attestation.errors import (
    AttesterError,
    BindingError,
    EndorsementError,
    EventLogError,
    EvidenceError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record
from attestation.quotes.tpm_keys import ObjectAttribute, PublicArea
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import binding

pytestmark = pytest.mark.swtpm

APP, JOB = b"a" * 32, b"j" * 32


def trusting(attester: TpmAttester) -> TrustAnchors:
    digest = hashlib.sha256(attester.attestation_key.spki).digest()
    return TrustAnchors(tpm_aks=frozenset([digest]))


def check(evidence: Evidence, attester: TpmAttester, bound: Binding) -> Claims:
    return verify(evidence, binding=bound, trust=trusting(attester), now=datetime.now(UTC))


def reset(tpm: SoftwareTpm) -> None:
    tpm.stop()
    tpm.start()


@pytest.mark.parametrize("ak", ["ecdsa", "rsassa", "rsapss"])
def test_measure_quote_and_verify(software_tpm: SoftwareTpm, tmp_path: Path, ak: str) -> None:
    reset(software_tpm)
    attester = TpmAttester(tmp_path / "site", tcti=software_tpm.tcti, scope="job-1", ak=ak)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    bound = binding()
    claims = check(attester.collect(bound), attester, bound)
    assert claims.measurements["app"] == APP
    assert claims.measurements["job"] == JOB
    assert claims.attributes["tpm.hierarchy"] == "endorsement"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        evidence = attester.collect(bound)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1  # 0.02 on an idle machine; see benchmarks/tpm.py
    with pytest.raises(BindingError):
        check(evidence, attester, binding(nonce=b"m" * 32))
    with pytest.raises(BindingError):
        check(evidence, attester, binding(tls_key=b"another"))


def test_evidence_of_another_tpm_is_refused(
    software_tpm: SoftwareTpm, fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    one = TpmAttester(tmp_path / "one", tcti=fresh_tpm.tcti)
    reset(software_tpm)
    two = TpmAttester(tmp_path / "two", tcti=software_tpm.tcti)
    bound = binding()
    with pytest.raises(EndorsementError, match="neither proven"):
        check(two.collect(bound), one, bound)
    mixed = replace(one.collect(bound), event_log=two.collect(bound).event_log)
    check(mixed, one, bound)  # both logs are empty
    two.extend("app", APP)
    with pytest.raises(EventLogError):
        check(replace(mixed, event_log=two.collect(bound).event_log), one, bound)


def test_a_later_extend_changes_what_is_quoted(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    bound = binding()
    attester.extend("app", APP)
    before = attester.collect(bound)
    attester.extend("extra", b"x" * 32)
    after = attester.collect(bound)
    assert check(after, attester, bound).measurements["extra"] == b"x" * 32
    with pytest.raises(EventLogError) as caught:
        check(replace(after, event_log=before.event_log), attester, bound)
    assert caught.value.register == "pcr.14"
    with pytest.raises(EventLogError):
        check(replace(before, event_log=after.event_log), attester, bound)
    old, new = (check(e, attester, bound).measurements["pcr.14"] for e in (before, after))
    rewound = replace(after, quote=after.quote.replace(new, old), event_log=before.event_log)
    with pytest.raises(SignatureError) as refused:
        check(rewound, attester, bound)
    assert refused.value.step == "pcr digest"


def test_a_restarted_client_measures_the_same_again(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    bound = binding()
    for _ in range(2):
        attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, scope="job-1")
        attester.extend("app", APP)
        attester.extend("job", JOB)
    evidence = attester.collect(bound)
    assert len(EventLog.parse(evidence.event_log).events) == 2
    with pytest.raises(AttesterError, match="was measured as") as caught:
        attester.extend("app", b"b" * 32)
    assert caught.value.hint
    assert check(attester.collect(bound), attester, bound).measurements["app"] == APP


def test_two_jobs_on_one_tpm_see_their_own_claims(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    bound = binding()
    jobs = {
        name: TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, scope=name)
        for name in ("job-1", "job-2")
    }
    for number, attester in enumerate(jobs.values()):
        attester.extend("app", bytes([number]) * 32)
    for number, (name, attester) in enumerate(jobs.items()):
        claims = check(attester.collect(bound), attester, bound)
        other = f"job-{2 - number}"
        assert claims.attributes["tpm.scope"] == name
        assert claims.measurements["app"] == bytes([number]) * 32
        assert claims.measurements[f"other/{other}/app"] == bytes([1 - number]) * 32


def test_processes_that_measure_at_once_keep_one_log(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    bound = binding()

    def run(name: str) -> Claims:
        attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, scope=name)
        attester.extend("app", hashlib.sha256(name.encode()).digest())
        attester.extend("job", JOB)
        return check(attester.collect(bound), attester, bound)

    names = [f"job-{i}" for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for name, claims in zip(names, pool.map(run, names), strict=True):
            assert claims.measurements["app"] == hashlib.sha256(name.encode()).digest()


def test_a_reset_discards_the_log(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    bound = binding()
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    attester.extend("app", APP)
    key = attester.attestation_key
    first = check(attester.collect(bound), attester, bound)
    reset(fresh_tpm)
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    claims = check(attester.collect(bound), attester, bound)
    assert attester.attestation_key == key
    assert "app" not in claims.measurements
    assert claims.attributes["tpm.reset_count"] == first.attributes["tpm.reset_count"] + 1  # type: ignore[operator]
    attester.extend("app", b"b" * 32)
    assert check(attester.collect(bound), attester, bound).measurements["app"] == b"b" * 32


def test_a_process_that_died_between_log_and_register_is_mended(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    bound = binding()
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    attester.extend("app", APP)
    path = tmp_path / "site" / "runtime.log"
    log = record(EventLog.parse(path.read_bytes()), Measurement(claim="job", digest=JOB), 14)
    RuntimeLog(tmp_path / "site", 14, "sha256", None).store(log)
    claims = check(attester.collect(bound), attester, bound)
    assert claims.measurements["app"] == APP
    assert "job" not in claims.measurements
    attester.extend("job", JOB)
    assert check(attester.collect(bound), attester, bound).measurements["job"] == JOB


def test_processes_killed_while_they_measure_leave_a_log_that_explains_the_register(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    code = (
        "import sys, itertools\nfrom pathlib import Path\n"
        "from attestation.attesters.tpm import TpmAttester\n"
        "attester = TpmAttester(Path(sys.argv[1]), tcti=sys.argv[2], scope=sys.argv[3])\n"
        "for i in itertools.count():\n"
        "    attester.extend(f'claim-{i}', bytes(32))\n"
        "    print('measured', flush=True)\n"
    )
    bound, measured = binding(), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for run in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "site"), fresh_tpm.tcti, f"run-{run}"],
            stdout=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + random.random() / 20)
            process.kill()
        attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, scope=f"run-{run}")
        evidence = attester.collect(bound)
        check(evidence, attester, bound)
        measured = len(EventLog.parse(evidence.event_log).events)
    assert measured >= 8


def test_a_tpm_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.attesters.tpm2_tools._COMMAND_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as control:
        for listener, name in ((silent, "silent"), (control, "silent.ctrl")):
            listener.bind(str(tmp_path / name))
            listener.listen(8)
        assert "did not answer within" in TpmAttester.detect(f"swtpm:path={tmp_path}/silent")


def test_a_register_that_others_extended_is_refused_with_a_way_out(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    attester.extend("app", APP)
    with Tpm2Tools(fresh_tpm.tcti).workspace() as work:
        work.run("pcrextend", "-Q", f"14:sha256={'11' * 32}")
    for action in (
        lambda: attester.collect(binding()),
        lambda: attester.extend("job", JOB),
    ):
        with pytest.raises(AttesterError, match="not in") as caught:
            action()
        assert "restart" in caught.value.hint


def test_a_damaged_log_is_named(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    attester.extend("app", APP)
    (tmp_path / "site" / "runtime.log").write_bytes(b"junk")
    with pytest.raises(AttesterError, match=r"runtime\.log is damaged"):
        attester.extend("job", JOB)


def test_firmware_events_come_along(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    log = EventLog.create(("sha1", "sha256"))
    with Tpm2Tools(fresh_tpm.tcti).workspace() as work:
        for pcr in (0, 9, 14):
            digest = hashlib.sha256(bytes([pcr])).digest()
            log = log.append(pcr, 13, {"sha1": bytes(20), "sha256": digest}, b"boot")
            work.run("pcrextend", "-Q", f"{pcr}:sha256={digest.hex()}")
    path = tmp_path / "binary_bios_measurements"
    path.write_bytes(log.to_bytes())
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti, firmware_log=path)
    attester.extend("app", APP)
    bound = binding()
    evidence = attester.collect(bound)
    trust = replace(trusting(attester), tpm_boot_values=frozenset([log.replay("sha256")[14]]))
    claims = verify(evidence, binding=bound, trust=trust, now=datetime.now(UTC))
    assert claims.measurements["app"] == APP
    assert claims.measurements["pcr.9"] == log.replay("sha256")[9]
    with pytest.raises(AttesterError, match="cannot be read"):
        TpmAttester(tmp_path / "x", tcti=fresh_tpm.tcti, firmware_log=tmp_path / "none")


def test_names_and_digests_that_cannot_be_measured_are_refused(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=software_tpm.tcti)
    for claim, digest in (("App", APP), ("app", b"short"), ("a b", APP)):
        with pytest.raises(AttesterError):
            attester.extend(claim, digest)
    with pytest.raises(ValueError, match="scope"):
        TpmAttester(tmp_path / "site", tcti=software_tpm.tcti, scope="a/b")
    with pytest.raises(ValueError, match="ak is one of"):
        TpmAttester(tmp_path / "site", tcti=software_tpm.tcti, ak="dsa")


def test_the_files_of_tpm2_quote_verify_as_they_are(
    software_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    reset(software_tpm)
    attester = TpmAttester(tmp_path / "site", tcti=software_tpm.tcti)
    area, bound = attester.attestation_key, binding()
    with Tpm2Tools(software_tpm.tcti).workspace() as work:
        work.run(
            *("quote", "-Q", "-c", "0x8101fe14", "-l", "sha256:0,1,2,3,4,5,6,7,14+sha384:1"),
            *("-q", bound.qualifying_data().hex(), "-m", "message", "-s", "sig", "-o", "pcrs"),
        )
        message, *beside = (work.read(name) for name in ("message", "sig", "pcrs"))
    sized = len(area.raw).to_bytes(2, "big") + area.raw
    evidence = Evidence(tee=Tee.TPM, quote=message, endorsements=(*beside, sized))
    claims = check(evidence, attester, bound)
    assert claims.measurements["pcr.14"] == bytes(32)
    assert claims.measurements["pcr.1.sha384"] == bytes(48)


@pytest.mark.parametrize(("algorithm", "scheme"), [("ecc", "ecdsa"), ("rsa", "rsassa")])
def test_a_key_that_tpm2_createak_made_counts_as_its_public_key(
    fresh_tpm: SoftwareTpm, algorithm: str, scheme: str
) -> None:
    bound = binding()
    with Tpm2Tools(fresh_tpm.tcti).workspace(objects=True) as work:
        work.run("createek", "-Q", "-c", "ek.ctx", "-G", algorithm, "-u", "ek.pub")
        work.run("flushcontext", "-t")
        signing = ("-G", algorithm, "-g", "sha256", "-s", scheme)
        work.run("createak", "-Q", "-C", "ek.ctx", "-c", "ak.ctx", *signing, "-u", "ak.pub")
        work.run("flushcontext", "-t")
        work.run(
            *("quote", "-Q", "-c", "ak.ctx", "-l", "sha256:0,1,2,3", "-m", "message"),
            *("-q", bound.qualifying_data().hex(), "-s", "sig", "-o", "pcrs"),
        )
        message, *beside = (work.read(name) for name in ("message", "sig", "pcrs", "ak.pub"))
    area = PublicArea.parse_sized(beside[-1])
    evidence = Evidence(tee=Tee.TPM, quote=message, endorsements=tuple(beside))
    trust = TrustAnchors(tpm_aks=frozenset({area.digest}))
    claims = verify(evidence, binding=bound, trust=trust, now=datetime.now(UTC))
    assert claims.attributes["tpm.hierarchy"] == "unknown"
    assert claims.hardware_id == area.digest
    with pytest.raises(EndorsementError, match="neither proven"):
        verify(evidence, binding=bound, trust=TrustAnchors(), now=datetime.now(UTC))
    at = beside[-1].index(int(area.attributes).to_bytes(4, "big"))
    loose = int(area.attributes & ~ObjectAttribute.RESTRICTED).to_bytes(4, "big")
    beside[-1] = beside[-1][:at] + loose + beside[-1][at + 4 :]
    with pytest.raises(EvidenceError, match="restricted signing key"):
        verify(
            replace(evidence, endorsements=tuple(beside)),
            binding=bound,
            trust=trust,
            now=datetime.now(UTC),
        )


def test_a_handle_with_another_key_is_not_used(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    with Tpm2Tools(fresh_tpm.tcti).workspace(objects=True) as work:
        work.run("createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "other.ctx")
        work.run("evictcontrol", "-Q", "-C", "o", "-c", "other.ctx", "0x8101fe14")
    with pytest.raises(AttesterError, match="not a restricted signing key") as caught:
        _ = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti).attestation_key
    assert "tpm2_evictcontrol" in caught.value.hint


# The software TPM itself, and how it is reached.


def test_it_starts_and_stops_fast_and_keeps_its_state(tmp_path: Path) -> None:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    keys, seconds = [], []
    for _ in range(2):
        started = time.perf_counter()
        with SoftwareTpm(tmp_path / "tpm") as tpm:
            seconds.append(time.perf_counter() - started)
            assert TpmAttester.detect(tpm.tcti) == ""
            keys.append(TpmAttester(tmp_path / "site", tcti=tpm.tcti).attestation_key)
        with pytest.raises(AttesterError, match="not running"):
            _ = tpm.tcti
    assert keys[0] == keys[1]
    assert min(seconds) < 1  # 0.02 on an idle machine


def test_a_long_path_gets_a_socket_elsewhere(tmp_path: Path) -> None:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    with SoftwareTpm(tmp_path / ("x" * 60) / ("y" * 60)) as tpm:
        assert TpmAttester.detect(tpm.tcti) == ""
        path = Path(tpm.tcti.removeprefix("swtpm:path="))
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


def test_a_directory_serves_one_tpm_at_a_time(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="another software TPM"):
        SoftwareTpm(tmp_path / "tpm-state").start()
    assert TpmAttester.detect(fresh_tpm.tcti) == ""
    with pytest.raises(AttesterError, match="already running"):
        fresh_tpm.start()


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from attestation.attesters.software_tpm import SoftwareTpm\n"
        "tpm = SoftwareTpm(Path(sys.argv[1])).start()\nprint(tpm.tcti, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "tpm")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    tcti = parent.stdout.readline().strip()
    assert TpmAttester.detect(tcti) == ""
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    # A successor may start at once: it waits for the dying one.
    with SoftwareTpm(tmp_path / "tpm") as tpm:
        assert TpmAttester.detect(tpm.tcti) == ""


def test_a_tpm_that_is_not_there_states_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in TpmAttester.detect("device:/dev/no-such-tpm")
    gone = f"swtpm:path={tmp_path}/none"
    assert "Could not load tcti" in TpmAttester.detect(gone)
    assert "cannot be found" in TpmAttester.detect("swtpm:path=/no/such/place/tpm")
    attester = TpmAttester(tmp_path / "site", tcti=gone)
    with pytest.raises(Tpm2CommandError) as caught:
        attester.collect(binding())
    assert "running?" in caught.value.hint
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install swtpm tpm2-tools" in SoftwareTpm.available()
    assert "tpm2-tools is not installed" in TpmAttester.detect(gone)
    with pytest.raises(AttesterError, match="no software TPM"):
        SoftwareTpm(tmp_path / "tpm").start()
    with pytest.raises(AttesterError, match="not installed"):
        TpmAttester(tmp_path / "site", tcti=gone).extend("app", APP)
