"""One privacy budget for each data set, over all jobs: what fits, what is charged, what is lost."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.errors import AttesterError
from attestation.tpm.seal import TpmCounter
from edge.agent import budget_store as budgetstore
from edge.agent.budget_store import FILE, BudgetStore
from edge.agent.data_budget import BudgetAccounts, Limit, limits, refusals
from edge.agent.sealed_file import COUNTER_INDEX, SealedFile, file_key
from edge.config.site import SiteConfig
from edge.main import main
from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.job.spec import JobSpec
from fedlearn.privacy.accountant import composed_epsilon, epsilon

SITE = """\
state = "state"
[data.stays]
path = "data/stays"
epsilon = 5.0
delta = 1e-6
[data.free]
path = "data/free"
"""
JOB = """\
name = "NAME"
app = "app"
rounds = ROUNDS
sites = ["a"]
policy = "policy.toml"
policy_digest = "DIGEST"
[data.a]
set = "stays"
[privacy]
mechanism = "central-gaussian"
clip = 1.0
noise_multiplier = 4.0
epsilon = 8.0
delta = 1e-6
"""
KEY = bytes(range(32))


class Counter:
    """A TPM's counter; ``fails`` from that many increments on."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.fails = False

    def exists(self) -> bool:
        return self.value is not None

    def create(self) -> int:
        if self.value is None:
            self.value = 40
        return self.value

    def increment(self) -> int:
        if self.fails:
            raise AttesterError("the TPM does not answer")
        self.value = self.create() + 1
        return self.value


def job(name: str = "one", rounds: int = 4, *, change: tuple[str, str] = ("", "")) -> JobSpec:
    text = JOB.replace("NAME", name).replace("ROUNDS", str(rounds)).replace("DIGEST", "00" * 32)
    assert change[0] in text
    return JobSpec.from_toml(text.replace(*change))


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    for name in ("stays", "free"):
        (tmp_path / "data" / name / "2024").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "site.toml").write_text(SITE)
    return SiteConfig.load(tmp_path / "site.toml")


def place(config: SiteConfig, name: str = "stays") -> str:
    return config.data[name].place


def store(config: SiteConfig, counter: Counter | None = None, key: bytes = KEY) -> BudgetStore:
    return BudgetStore(config, key, counter=counter)


def spent(config: SiteConfig, book: BudgetAccounts) -> float:
    return book.epsilon(next(limits(config)))


# --- what fits ------------------------------------------------------------------------


def test_a_job_is_charged_what_the_accountant_states(config: SiteConfig) -> None:
    spec = job(rounds=4)
    assert spec.privacy is not None
    kept = store(config)
    kept.reserve(spec, place=place(config), assignment="a-1")
    assert spent(config, kept.book()) == pytest.approx(epsilon(spec.privacy, 4))
    kept.charge("a-1", "q1")
    kept.settle("a-1")
    assert spent(config, kept.book()) == pytest.approx(epsilon(spec.privacy, 1))


def test_jobs_are_composed_and_the_one_that_does_not_fit_is_refused(config: SiteConfig) -> None:
    first, second = job("one", 6), job("two", 6)
    assert first.privacy is not None
    alone = epsilon(first.privacy, 6)
    both = composed_epsilon([(first.privacy, 6), (first.privacy, 6)], 1e-6)
    assert alone < both < 2 * alone
    assert both == pytest.approx(epsilon(first.privacy, 12))
    kept = store(config)
    kept.reserve(first, place=place(config), assignment="a-1")
    kept.reserve(second, place=place(config), assignment="a-2")
    third = job("three", 6)
    (reason,) = refusals(config, third, place(config), kept.book())
    assert "6 rounds of the job bring the data set stays to epsilon" in reason
    assert "its budget over all jobs is 5, and the others have spent or reserved 4." in reason
    before = kept.book()
    with pytest.raises(PrivacyError, match="its budget over all jobs is 5"):
        kept.reserve(third, place=place(config), assignment="a-3")
    assert kept.book() == before
    # Other data has another budget.
    assert not list(refusals(config, third, place(config, "free"), kept.book()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ((JOB[JOB.index("[privacy]") :], ""), "it promises no privacy"),
        (("delta = 1e-6", "delta = 1e-6\ninsecure_deterministic_noise = true"), "from its seed"),
        (("delta = 1e-6", "delta = 1e-6\ninsecure_exact_metrics = true"), "metrics leave the site"),
    ],
)
def test_a_job_that_no_epsilon_bounds_is_refused_where_there_is_a_limit(
    config: SiteConfig, change: tuple[str, str], why: str
) -> None:
    spec = job(change=change)
    (reason,) = refusals(config, spec, place(config), BudgetAccounts())
    assert "the data set stays has a privacy budget" in reason
    assert why in reason
    assert not list(refusals(config, spec, place(config, "free"), BudgetAccounts()))
    allowed = replace(config, privacy=replace(config.privacy, insecure_exact_metrics=True))
    assert bool(list(refusals(allowed, spec, place(config), BudgetAccounts()))) == (
        "metrics" not in why
    )


def test_neither_a_second_name_nor_a_part_of_the_data_has_a_budget_of_its_own(
    config: SiteConfig, tmp_path: Path
) -> None:
    kept = store(config)
    kept.reserve(job("one", 12), place=place(config), assignment="a-1")
    for other in (place(config) + "/2024", str(Path(place(config)).parent)):
        assert list(refusals(config, job("two", 6), other, kept.book()))
    # The data moves, and keeps its name; or is named anew where it lies.
    moved = SITE.replace('path = "data/stays"', 'path = "data/free/2024"')
    named = SITE.replace("[data.stays]", "[data.visits]")
    for text in (moved, named):
        (tmp_path / "site.toml").write_text(text)
        again = SiteConfig.load(tmp_path / "site.toml")
        limit = next(limits(again))
        assert store(again).book().epsilon(limit) > 4
        assert list(refusals(again, job("two", 6), limit.place, store(again).book()))


def test_a_job_that_samples_its_sites_is_charged_with_the_rounds_of_this_site(
    config: SiteConfig,
) -> None:
    sampled = job(
        "sampled",
        10,
        change=(
            "delta = 1e-6",
            'delta = 1e-6\nsampling = "poisson"\nsampling_rate = 0.5\nexpected_cohort = 1.0',
        ),
    )
    kept = store(config)
    kept.reserve(sampled, place=place(config), assignment="a-1")
    reserved = spent(config, kept.book())
    kept.charge("a-1", "q1")
    kept.settle("a-1")
    assert sampled.privacy is not None
    assert spent(config, kept.book()) == epsilon(sampled.privacy, 1) < reserved


def test_jobs_of_several_mechanisms_are_composed() -> None:
    full = job().privacy
    assert full is not None
    poisson = replace(full, sampling="poisson", sampling_rate=0.5, expected_cohort=1.0)
    louder = replace(full, noise_multiplier=2 * full.noise_multiplier)
    assert composed_epsilon([], 1e-6) == composed_epsilon([(full, 0)], 1e-6) == 0.0
    assert composed_epsilon([(full, 3), (poisson, 3)], 1e-6) == epsilon(full, 6)
    two = composed_epsilon([(full, 3), (louder, 3)], 1e-6)
    assert epsilon(full, 3) < two < epsilon(full, 6)
    with pytest.raises(PrivacyError, match="cannot be accounted for"):
        composed_epsilon([(full, -1)], 1e-6)


# --- charging -------------------------------------------------------------------------


def test_an_update_beyond_the_budget_stays_at_the_site(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(rounds=2), place=place(config), assignment="a-1")
    left = 0
    with contextlib.suppress(PrivacyError):
        for left in range(100):
            kept.charge("a-1", f"q{left}")
    book = kept.book()
    assert book.charges[0].spent == left > 2
    with pytest.raises(PrivacyError, match="bring the data set stays to epsilon"):
        kept.charge("a-1", "one more")
    assert kept.book() == book
    assert spent(config, book) <= 5.0
    with pytest.raises(PrivacyError, match="nothing is reserved for the assignment a-2"):
        kept.charge("a-2", "q1")
    for name in ("", "x" * 129, "ä"):
        with pytest.raises(PrivacyError, match="must have a name of 1 to 128"):
            kept.charge("a-1", name)


def test_the_same_question_is_charged_once(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(), place=place(config), assignment="a-1")
    for question in ("q1", "q1", "q2", "q2", "q1"):
        kept.charge("a-1", question)
    assert kept.book().charges[0].spent == 3


def test_a_resumed_job_goes_on_with_its_own_charge(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job(rounds=10), place=place(config), assignment="a-1")
    for number in range(7):
        kept.charge("a-1", f"q{number}")
    kept.settle("a-1")
    kept.reserve(job(rounds=10), place=place(config), assignment="a-2")
    (charge,) = kept.book().charges
    assert (charge.spent, charge.rounds, charge.assignment) == (7, 10, "a-2")
    for number in range(5):
        kept.charge("a-2", f"r{number}")
    assert kept.book().charges[0].rounds == 12


def test_two_jobs_at_once_never_pass_the_limit(config: SiteConfig) -> None:
    kept = store(config)
    refused: list[str] = []

    def accept(number: int) -> None:
        try:
            kept.reserve(job(f"job-{number}", 6), place=place(config), assignment=f"a-{number}")
            for round_ in range(6):
                kept.charge(f"a-{number}", f"q{round_}")
        except PrivacyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book = kept.book()
    assert len(refused) == 5 - len(book.charges) > 0
    assert [charge.spent for charge in book.charges] == [6] * len(book.charges)
    assert spent(config, book) <= 5.0


# --- crashes --------------------------------------------------------------------------


def test_what_was_charged_survives_a_crash_and_the_rest_is_given_back(config: SiteConfig) -> None:
    kept = store(config)
    kept.reserve(job("one", 6), place=place(config), assignment="a-1")
    kept.reserve(job("two", 6), place=place(config), assignment="a-2")
    kept.charge("a-1", "q1")
    after = store(config)
    assert after.book() == kept.book()
    after.settle_others(["a-2"])
    first, second = after.book().charges
    assert (first.rounds, first.assignment) == (1, "")
    assert (second.rounds, second.assignment) == (6, "a-2")


@pytest.mark.parametrize("moment", ["before", "written", "counted"])
def test_a_crash_at_any_moment_leaves_a_charge_or_no_answer(
    config: SiteConfig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    counter = Counter()
    kept = store(config, counter)
    kept.reserve(job(), place=place(config), assignment="a-1")
    if moment == "before":
        monkeypatch.setattr("edge.agent.sealed_file.write_durably", _fails)
        with pytest.raises(ConfigError, match="cannot be read or written: power"):
            kept.charge("a-1", "q1")
        monkeypatch.undo()
    elif moment == "written":
        counter.fails = True
        with pytest.raises(ConfigError, match="TPM's counter cannot be used"):
            kept.charge("a-1", "q1")
        counter.fails = False
    else:
        kept.charge("a-1", "q1")
    again = store(config, counter)
    assert again.book().charges[0].spent == (0 if moment == "before" else 1)
    again.charge("a-1", "q2")
    assert store(config, counter).book().charges[0].spent == (1 if moment == "before" else 2)


def _fails(*_: object) -> None:
    raise OSError("power")


# --- who edits the disk ---------------------------------------------------------------


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


def test_a_budget_states_epsilon_and_delta(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE.replace("delta = 1e-6\n", ""))
    with pytest.raises(ConfigError, match=r"data\.stays\.delta: a privacy budget states epsilon"):
        SiteConfig.load(tmp_path / "site.toml")


# --- the commands ---------------------------------------------------------------------


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


def test_a_budget_below_another_limit_is_named(config: SiteConfig) -> None:
    whole = Limit(name="all", place=str(Path(place(config)).parent), epsilon=0.1, delta=1e-6)
    kept = store(config)
    kept.reserve(job(), place=place(config), assignment="a-1")
    assert kept.book().exceeded(whole, kept.book().charges[0])
