"""``server.toml``: what is wrong is named, what is insecure is asked for by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestation.config import toml
from fedlearn.errors import ConfigError
from server.config import ServerConfig

MINIMUM = """\
state = "state"
trust_domain = "hospitals.example"
[keys]
protect = ["insecure-plain-key-file"]
"""

FULL = """\
state = "/var/lib/fedlearn"
trust_domain = "hospitals.example"

[listen]
gate = "0.0.0.0:9443"
control = "[::1]:9444"
fleet = "127.0.0.1:0"

[advertise]
gate = "coordinator.hospitals.example:443"

[keys]
protect = ["tpm-policy", "recovery-key", "passphrase"]
recovery_key = "recovery.pub.pem"
passphrase_file = "/run/secrets/root"
pcrs = [0, 7]

[attester]
kind = "tpm"
tcti = "device:/dev/tpmrm0"

[certificates]
client_s = 900
renew_after_s = 60
renew_by_s = 120

[limits]
jobs = 2

[trust]
insecure_sample_keys = ["{key}"]
collateral = ["collateral.json"]

[jobs]
resume = false
""".replace("{key}", "ab" * 32)


def test_the_file_is_read_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.toml"
    path.write_text(MINIMUM)
    parsed: list[bytes | str] = []
    parse = toml.parse

    def counting(data: bytes | str) -> toml.Source:
        parsed.append(data)
        return parse(data)

    monkeypatch.setattr(toml, "parse", counting)
    found, document = ServerConfig.read(path)
    assert parsed == [MINIMUM.encode()]
    assert found == ServerConfig.load(path)
    assert document["trust_domain"] == found.trust_domain


def test_a_document_that_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(MINIMUM + "\nlisten = [")
    with pytest.raises(ConfigError, match=r"server\.toml:\d+: is not TOML"):
        ServerConfig.read(path)


def _load(tmp_path: Path, source: str) -> ServerConfig:
    path = tmp_path / "server.toml"
    path.write_text(source)
    return ServerConfig.load(path)


def test_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path, MINIMUM)
    assert config.state == tmp_path / "state"
    assert config.keys.insecure
    assert config.attester.kind == "auto"
    assert config.certificates.renew_by_s <= 600
    assert config.advertised("gate", "127.0.0.1:9443") == "127.0.0.1:9443"


def test_everything(tmp_path: Path) -> None:
    config = _load(tmp_path, FULL)
    assert config.state == Path("/var/lib/fedlearn")
    assert config.keys.recovery_key == tmp_path / "recovery.pub.pem"
    assert not config.keys.insecure
    assert config.advertised("gate", "0.0.0.0:9443") == "coordinator.hospitals.example:443"
    assert config.trust.insecure_sample_keys == (bytes([0xAB] * 32),)
    assert config.trust.collateral == (tmp_path / "collateral.json",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"hospitals.example"', '"Hospitals"', ":2: trust_domain: must be a lower-case DNS name"),
        ("[keys]", "[kes]", "kes: unknown key; did you mean 'keys'?"),
        ('gate = "0.0.0.0:9443"', 'gate = "0.0.0.0"', ":5: listen.gate: must be an address"),
        ('gate = "0.0.0.0:9443"', 'gate = "h:99999"', ":5: listen.gate: must be an address"),
        ('control = "[::1]:9444"', 'control = "0.0.0.0:1"', ":6: listen.control: needs advertise"),
        ('control = "[::1]:9444"', 'control = "0.0.0.0:9443"', "address of another listener"),
        ('gate = "coordinator', 'gat = "coordinator', "did you mean 'gate'?"),
        ('"tpm-policy", ', '"tpm", ', ':13: keys.protect[0]: must be one of "tpm-policy"'),
        ('"tpm-policy", "recovery-key"', '"tpm-policy"', ":14: keys.recovery_key: is not used"),
        (
            'recovery_key = "recovery.pub.pem"\n',
            "",
            "\"recovery-key\" needs the key 'recovery_key'",
        ),
        ('"passphrase"]', '"passphrase", "insecure-plain-key-file"]', "must be the only protector"),
        ("pcrs = [0, 7]", "pcrs = [0, 24]", ":16: keys.pcrs[1]: must be a whole number from 0"),
        ("pcrs = [0, 7]", "pcrs = [7, 7]", "7 is listed twice"),
        ('kind = "tpm"', 'kind = "sample"', ':19: attester.kind: must be one of "auto"'),
        ('kind = "tpm"', 'kind = "ccnp"', ':20: attester.tcti: only for kind = "azure" or "tpm"'),
        ("client_s = 900", "client_s = 7200", ":23: certificates.client_s: must be a whole number"),
        ("renew_by_s = 120", "renew_by_s = 30", ":25: certificates.renew_by_s: must be above"),
        ("renew_by_s = 120", "renew_by_s = 601", "must be a whole number from 10 to 600"),
        ("jobs = 2", "jobs = 0", ":28: limits.jobs: must be a whole number from 1"),
        ('["abab', '["xxab', ":31: trust.insecure_sample_keys[0]: must be 64 hexadecimal"),
        ("insecure_sample_keys", "sample_keys", "did you mean 'insecure_sample_keys'?"),
        ("resume = false", "resume = 0", ":35: jobs.resume: must be true or false, not 0"),
    ],
)
def test_a_broken_file_is_named_by_line_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in FULL
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, FULL.replace(old, new, 1))
    assert message in str(caught.value)
    assert "server.toml" in str(caught.value)


def test_a_socket_of_an_app_host_has_a_name_that_the_kernel_takes(tmp_path: Path) -> None:
    jobs = MINIMUM + '[jobs]\napp_host = "own/app-host.sock"\n'
    assert _load(tmp_path, jobs).jobs.app_host == tmp_path / "own/app-host.sock"
    with pytest.raises(ConfigError, match=r"jobs\.app_host: is longer than the 107 bytes"):
        _load(tmp_path, jobs.replace("own", "o" * 100))


def test_a_coordinator_without_a_key_protector_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the key 'keys'"):
        _load(tmp_path, MINIMUM[: MINIMUM.index("[keys]")])
    with pytest.raises(ConfigError, match="a list of 1 to 4"):
        _load(tmp_path, MINIMUM.replace('"insecure-plain-key-file"', ""))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ServerConfig.load(tmp_path / "server.toml")
