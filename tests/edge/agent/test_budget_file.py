"""The file of a site's privacy budgets: edits and older copies are detected; commands show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.tpm.seal import TpmCounter
from edge.agent import budget_store as budgetstore
from edge.agent.budget_store import FILE, BudgetStore
from edge.agent.data_budget import BudgetAccounts
from edge.agent.sealed_file import COUNTER_INDEX, SealedFile, file_key
from edge.config.site import SiteConfig
from edge.main import main
from fedlearn.errors import ConfigError, PrivacyError
from tests.fakes.budget_file import JOB, KEY, Counter, job, place, store


def test_every_changed_byte_is_found(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(), place=place(config), assignment="a-1")
    path = config.state / FILE
    good = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"one" not in good
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(ConfigError, match=r"privacy-budget: (was altered|is not a sealed)"):
            store(config).book()
    for content in (b"", good[:-1], good + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="privacy-budget"):
            kept.book()
    path.write_bytes(good)
    assert store(config).book() == kept.book()
    with pytest.raises(ConfigError, match="sealed with the key of another enrollment"):
        store(config, key=bytes(32)).book()
    other = config.state / "other"
    other.write_bytes(good)
    with pytest.raises(ConfigError, match="was altered"):
        SealedFile(other, KEY).read()


def test_an_older_copy_and_a_file_that_is_gone_are_found_by_the_counter(
    config: SiteConfig,
) -> None:
    counter, path = Counter(), config.state / FILE
    kept = store(config, counter)
    kept.reserve(job(), place=place(config), assignment="a-1")
    older = path.read_bytes()
    kept.charge("a-1", "q1")
    newest = path.read_bytes()
    path.write_bytes(older)
    for asked in (kept, store(config, counter)):
        with pytest.raises(ConfigError, match=r"at count 41, .* at 42: an older copy") as caught:
            asked.charge("a-1", "q2")
        assert "budget reset" in caught.value.hint
    path.unlink()
    with pytest.raises(ConfigError, match="is gone"):
        store(config, counter).book()
    path.write_bytes(newest)
    with pytest.raises(ConfigError, match="this configuration has no TPM"):
        store(config).book()
    assert store(config, counter).book().charges[0].spent == 1
    other = Counter()
    other.value = 7
    with pytest.raises(ConfigError, match="it is another counter"):
        store(config, other).book()
    store(config, other).reset()
    assert store(config, other).book() == BudgetAccounts()


@pytest.mark.swtpm
def test_a_real_tpm_finds_the_older_copy(config: SiteConfig, tmp_path: Path) -> None:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    path = config.state / FILE
    with SoftwareTpm(tmp_path / "tpm") as tpm:

        def opened() -> BudgetStore:
            return BudgetStore(config, KEY, counter=TpmCounter(tpm.tcti, COUNTER_INDEX))

        assert opened().book() == BudgetAccounts()
        kept = opened()
        kept.reserve(job(), place=place(config), assignment="a-1")
        older = path.read_bytes()
        kept.charge("a-1", "q1")
        assert opened().book().charges[0].spent == 1
        unplugged = BudgetStore(config, KEY, counter=TpmCounter(tpm.tcti, COUNTER_INDEX))
        tpm.stop()
        with pytest.raises(ConfigError, match="the TPM's counter cannot be used"):
            unplugged.book()
        tpm.start()
        opened().settle("a-1")
        path.write_bytes(older)
        with pytest.raises(ConfigError, match="an older copy was restored"):
            opened().book()
        path.unlink()
        with pytest.raises(ConfigError, match="is gone"):
            opened().book()
        opened().reset()
        assert opened().book() == BudgetAccounts()


def test_a_site_that_gets_a_tpm_goes_on_and_then_counts(config: SiteConfig) -> None:
    store(config).reserve(job(), place=place(config), assignment="a-1")
    unbound = (config.state / FILE).read_bytes()
    counter = Counter()
    kept = store(config, counter)
    kept.charge("a-1", "q1")
    assert kept.book().charges[0].spent == 1
    (config.state / FILE).write_bytes(unbound)
    with pytest.raises(ConfigError, match="before this site's TPM counted"):
        store(config, counter).book()


def test_the_book_is_bounded(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.agent.data_budget.MAX_CHARGES", 1)
    kept = store(config)
    kept.reserve(job("one", 1), place=place(config), assignment="a-1")
    kept.reserve(job("one", 1), place=place(config), assignment="a-2")
    with pytest.raises(PrivacyError, match="holds 1 jobs"):
        kept.reserve(job("two", 1), place=place(config), assignment="a-3")


def test_a_book_of_a_later_version_is_not_guessed_at(config: SiteConfig) -> None:
    SealedFile(config.state / FILE, KEY).write(b'{"format": 2}')
    with pytest.raises(ConfigError, match="format 2; this version reads 1"):
        store(config).book()


def test_the_commands_show_and_begin_anew(
    config: SiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_key = ec.generate_private_key(ec.SECP256R1())

    class Identity:
        key = site_key

        @classmethod
        def load(cls, state: Path) -> Identity:
            return cls()

    monkeypatch.setattr("edge.protocol.identity.SiteIdentity", Identity)

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, ["budget", *words, "--config", str(tmp_path / "site.toml")])

    kept = budgetstore.BudgetStore(config, file_key(site_key))
    assert "stays  epsilon 0 of 5 at delta 1e-06" in run("show").stdout
    kept.reserve(job("one", 4), place=place(config), assignment="a-1")
    kept.charge("a-1", "q1")
    open_job = job("open", change=(JOB[JOB.index("[privacy]") :], ""))
    kept.reserve(open_job, place=place(config, "free"), assignment="a-2")
    shown = run("show").stdout
    assert "  one  4 rounds counted, 1 updates left, 4 reserved, running" in shown
    assert "  open  no epsilon bounds what it revealed, running" in shown
    rows = {row["name"]: row for row in json.loads(run("show", "--json").stdout)["data"]}
    found = rows["stays"]
    assert found["limit"] == 5.0
    assert found["left"] == pytest.approx(5.0 - found["epsilon"])
    assert found["jobs"][0] | {"digest": ""} == {
        "name": "one",
        "digest": "",
        "running": True,
        "bounded": True,
        "reserved": 4,
        "spent": 1,
        "counted": 4,
    }
    assert rows["free"]["limit"] is None
    assert rows["free"]["jobs"][0]["bounded"] is False
    refused = run("reset")
    assert refused.exit_code == 1
    assert "a new budget does not count what jobs have spent" in refused.stderr
    assert kept.book().charges
    assert run("reset", "--insecure-forget-spent").exit_code == 0
    assert kept.book() == BudgetAccounts()
    again = json.loads(run("reset", "--insecure-forget-spent", "--json").stdout)
    assert (again["forgotten"], again["data"]) == (True, ["free", "stays"])
