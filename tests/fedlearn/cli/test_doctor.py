"""The doctor: every check finds its fault, and states how to mend it."""

from __future__ import annotations

import json
import resource
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedlearn.checks import Check, Level, files, machine, run, tee
from fedlearn.cli import main
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.development_key import make_key
from fedlearn.errors import ConfigError

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_this_machine_is_examined_in_seconds() -> None:
    done = _run("doctor", "--json")
    report = json.loads(done.stdout)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "flwr", "torch", "clock", "TEE", "swtpm", "disk", "umask"} <= names
    assert all(check["mend"] for check in report["checks"] if check["level"] != "ok")
    assert report["ok"] is (done.exit_code == 0)


def test_lines_for_people() -> None:
    done = _run("doctor")
    assert "that will not work" in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [
        ("1.41.0", "==1.41.0", True),
        ("1.41.0", "==1.41", True),
        ("1.42.0", "==1.41.0", False),
        ("2.13.0+cpu", ">=2.4", True),
        ("2.3.9", ">=2.4", False),
        ("7.0", ">=6.33,<7", False),
        ("6.33.6", ">=6.33,<7", True),
        ("1.10", ">1.9,!=1.11", True),
        ("1.5.2", "~=1.4", True),
        ("2.0", "~=1.4", False),
        ("1.0", "", True),
        ("1.0", "@ nonsense", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, good: bool) -> None:
    assert machine.fits(version, wanted) is good


def test_an_old_python_fails() -> None:
    assert machine.python((3, 10, 4)).level is Level.FAIL
    assert machine.python((3, 11, 0)).level is Level.OK


def test_a_clock_in_the_past_or_on_its_own() -> None:
    past = machine.clock(datetime(2001, 1, 1, tzinfo=UTC), synchronised=True)
    assert past.level is Level.FAIL
    assert "before this software" in past.found
    assert machine.clock(synchronised=False).level is Level.WARN
    assert machine.clock(synchronised=True).level is Level.OK


def test_a_full_disk_and_a_small_memory(tmp_path: Path) -> None:
    assert machine.disk(tmp_path / "not/yet/there", need_gib=1e9).level is Level.FAIL
    assert machine.disk(tmp_path, need_gib=0).level is Level.OK
    for kilobytes, level in ((100, Level.FAIL), (2**20, Level.WARN), (2**23, Level.OK)):
        (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {kilobytes} kB\n")
        assert machine.memory(tmp_path / "meminfo").level is level
    assert machine.memory(tmp_path / "gone").level is Level.WARN


def test_swap_on_disk_is_noted(tmp_path: Path) -> None:
    head = "Filename Type Size Used Priority\n"
    (tmp_path / "swaps").write_text(head + "/dev/sda2 partition 1 0 -2\n")
    assert machine.swap(tmp_path / "swaps").level is Level.WARN
    (tmp_path / "swaps").write_text(head + "/dev/zram0 partition 1 0 -2\n")
    assert machine.swap(tmp_path / "swaps").level is Level.OK


def test_limits_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, level in ((100, Level.FAIL), (512, Level.WARN), (4096, Level.OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, 4096))
        assert machine.open_files().level is level
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert machine.core_dumps().level is Level.WARN
    monkeypatch.setattr("tempfile.gettempdir", lambda: (_ for _ in ()).throw(OSError("no")))
    assert machine.temporary().level is Level.FAIL


def test_a_file_named_like_one_of_ours_is_noted(tmp_path: Path) -> None:
    assert machine.shadowing(tmp_path).level is Level.OK
    (tmp_path / "server.py").write_text("")
    found = machine.shadowing(tmp_path)
    assert found.level is Level.WARN
    assert "server.py" in found.found


def test_tees_are_found_by_their_devices(tmp_path: Path) -> None:
    assert next(iter(tee.devices(tmp_path))).level is Level.WARN
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tdx_guest").write_text("")
    (tmp_path / "sys/kernel/config/tsm/report").mkdir(parents=True)
    found = list(tee.devices(tmp_path))
    assert [check.level for check in found] == [Level.OK]
    assert "Intel TDX" in found[0].found
    assert "configfs" in found[0].found


def test_tools_that_are_missing_are_named() -> None:
    found = list(tee.tools(lambda name: None))
    assert [check.level for check in found] == [Level.WARN, Level.WARN]
    assert "apt-get install swtpm" in found[0].mend


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        (AttesterSettings(kind="auto"), Level.FAIL, "no TEE"),
        (AttesterSettings(kind="tsm"), Level.FAIL, "tsm"),
        (AttesterSettings(kind="ccnp"), Level.FAIL, "no socket"),
        (AttesterSettings(kind="tpm"), Level.FAIL, "tpm2-tools"),
        (AttesterSettings(kind="insecure-software-tpm"), Level.FAIL, "tpm2-tools"),
    ],
)
def test_an_attester_that_is_not_there_fails(
    tmp_path: Path, settings: AttesterSettings, level: Level, words: str
) -> None:
    found = tee.attester(settings, state=tmp_path, root=tmp_path, which=lambda name: None)
    assert found.level is level
    assert words in found.found
    assert found.mend


def test_a_development_key_is_shown_by_its_digest_and_a_missing_one_is_a_failed_check(
    tmp_path: Path,
) -> None:
    sample = AttesterSettings(kind="insecure-sample")
    [missing] = run([("attester", lambda: tee.attester(sample, state=tmp_path))])
    assert missing.level is Level.FAIL
    assert f"fedlearn evidence development-key --new {tmp_path}" in missing.mend
    digest = make_key(tmp_path)
    found = tee.attester(sample, state=tmp_path)
    assert (found.level, digest.hex() in found.found) == (Level.WARN, True)
    gone = AttesterSettings(kind="insecure-sample", key=Path("/gone"))
    [missing] = run([("attester", lambda: tee.attester(gone, state=tmp_path))])
    assert (missing.level, "/gone" in missing.found) == (Level.FAIL, True)


def test_an_attester_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tpmrm0").write_text("")
    for kind in ("auto", "tpm"):
        settings = AttesterSettings(kind=kind)
        found = tee.attester(settings, state=tmp_path, root=tmp_path, which=lambda name: name)
        assert found.level is Level.OK


def _certificate(start: datetime, end: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder(
        name,
        name,
        key.public_key(),
        1,
        start,
        end,
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("start", "end", "level"),
    [
        (-10, 100, Level.OK),
        (-100, -1, Level.FAIL),
        (1, 100, Level.FAIL),
        (-100, 1, Level.WARN),
    ],
)
def test_certificates_are_looked_at(tmp_path: Path, start: int, end: int, level: Level) -> None:
    (tmp_path / "deep").mkdir()
    pem = _certificate(NOW + timedelta(days=start), NOW + timedelta(days=end))
    (tmp_path / "deep/site.pem").write_bytes(pem)
    (tmp_path / "key.pem").write_text("not a certificate")
    levels = [check.level for check in files.certificates(tmp_path, NOW)]
    assert levels[0] is level


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = files.port(address, name="gate")
        assert (found.level, "in use" in found.found) == (Level.FAIL, True)
    assert files.port(address, name="gate").level is Level.OK
    assert files.port("127.0.0.1:0", name="gate").level is Level.OK
    assert files.port("192.0.2.1:9443", name="gate").level is Level.FAIL
    assert files.port("no-such-host.invalid:9443", name="gate").level is Level.FAIL


def test_folders_and_secrets(tmp_path: Path) -> None:
    assert files.folder(tmp_path / "new", name="state").level is Level.OK
    assert files.folder(tmp_path / "new", name="data", write=False).level is Level.FAIL
    tmp_path.chmod(0o755)
    assert files.folder(tmp_path, name="state", private=True).level is Level.FAIL
    secret = tmp_path / "secret"
    assert files.secret(secret, name="p").level is Level.FAIL
    secret.write_text("x")
    secret.chmod(0o644)
    assert "chmod 600" in files.secret(secret, name="p").mend
    secret.chmod(0o600)
    assert files.secret(secret, name="p").level is Level.OK
    assert files.folder(secret, name="state").level is Level.FAIL


def test_a_check_that_cannot_run_is_a_failed_check() -> None:
    def broken() -> Check:
        raise ConfigError("is wrong", where="x", hint="mend it")

    def denied() -> Check:
        raise PermissionError(13, "Permission denied", "/x")

    found = run([("a", broken), ("b", denied)])
    assert [(check.name, check.level) for check in found] == [("a", Level.FAIL), ("b", Level.FAIL)]
    assert found[0].mend == "mend it"


SERVER = 'state = "state"\ntrust_domain = "x.example"\n[keys]\nprotect = ["{keys}"]\n'


def test_a_coordinator_is_examined(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f'[listen]\ngate = "127.0.0.1:{taken.getsockname()[1]}"\n'
        path.write_text(SERVER.format(keys="insecure-plain-key-file") + listen)
        done = _run("doctor", "--server", path, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 1
    assert checks["server.toml"]["level"] == "ok"
    assert checks["keys"]["level"] == "warn"
    assert checks["flower"]["level"] == "ok"
    assert checks["state"]["found"].endswith("will be created")
    assert not (tmp_path / "state").exists()


def test_a_root_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    reported = Path(__file__).parents[2] / "attestation" / "reported" / "NUVO_2111.pem"
    (tmp_path / "vendor.pem").write_bytes(reported.read_bytes())
    trust = '[trust]\ntpm_ek_roots = ["vendor.pem"]\n'
    path.write_text(SERVER.format(keys="insecure-plain-key-file") + trust)
    checks = json.loads(_run("doctor", "--server", path, "--json").stdout)["checks"]
    [found] = [item for item in checks if item["name"] == "trust" and item["level"] == "warn"]
    assert f"{tmp_path / 'vendor.pem'}: certificate 1: not a certificate" in found["found"]


@pytest.mark.parametrize(
    ("flag", "source", "words"),
    [
        ("--server", "state = 1", "server.toml"),
        ("--server", SERVER.format(keys="recovery-key"), "needs the key 'recovery_key'"),
        (
            "--server",
            SERVER.format(keys="tpm-policy") + 'tcti = "device:/gone"',
            "/gone does not exist",
        ),
        ("--edge", 'state = "s"\n[data.x]\npath = "gone"\n', "gone does not exist"),
        ("--edge", "stat = 's'", "did you mean 'state'?"),
    ],
)
def test_a_broken_configuration_is_a_failed_check(
    tmp_path: Path, flag: str, source: str, words: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(source)
    done = _run("doctor", flag, path)
    assert done.exit_code == 1
    assert words in done.stdout
    assert "Traceback" not in done.output


def test_a_missing_configuration_and_a_cluster_are_reported_plainly(tmp_path: Path) -> None:
    done = _run("doctor", "--edge", tmp_path / "gone.toml", "--cluster")
    assert done.exit_code == 1
    assert "does not exist" in done.stdout
    assert done.stdout.count("does not exist") == 2
    alone = _run("doctor", "--cluster")
    assert "name the site: --edge site.toml" in alone.stdout


def test_what_keeps_user_code_in_is_reported() -> None:
    from fedlearn.sandbox import FULL, Protection, SandboxError, SandboxReport

    whole = SandboxReport(applied=FULL, missing={Protection.USER: "not root"}, abi=7)
    assert machine.sandbox(lambda: whole).level is Level.OK
    assert "Landlock ABI 7" in machine.sandbox(lambda: whole).found
    pod = SandboxReport(
        applied=frozenset({Protection.LANDLOCK, Protection.SECCOMP}),
        missing={Protection.PROCESSES: "Operation not permitted"},
    )
    assert machine.sandbox(lambda: pod).level is Level.WARN
    assert "pid-namespace: Operation not permitted" in machine.sandbox(lambda: pod).found
    nothing = SandboxReport(
        applied=frozenset({Protection.SECCOMP}), missing={Protection.LANDLOCK: "no Landlock"}
    )
    assert machine.sandbox(lambda: nothing).level is Level.FAIL

    def broken() -> SandboxReport:
        raise SandboxError("no process can be started")

    assert machine.sandbox(broken).level is Level.FAIL
