"""A job: strict in its file, equal after every round trip, bound by its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from attestation.config import InconsistentValues, dumps
from attestation.policy.parse import parse_policy
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.assignment import Assignment
from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.constraints.parts import faults_of_versions
from fedlearn.job.constraints.robust_rules import PRE_AGGREGATION, mixing_fault, too_few_updates
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.placement import MAX_SITES, Placement
from fedlearn.job.spec import MAX_JOB_TOML_BYTES, JobFiles, JobSpec, workload_digest
from fedlearn.job.strategies import (
    MEAN_FAMILY,
    OVER_SELECT,
    REQUIRED,
    STRATEGIES,
    STREAMING,
    option_fault,
)
from fedlearn.job.tables import StrategySpec
from server.flower.aggregation.mean import MAX_UPDATES

POLICY = b'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
MINIMUM = 'name = "medpar"\napp = "app"\nrounds = 5\nsites = ["a", "b"]\npolicy = "policy.toml"\n'
FULL = (
    MINIMUM
    + """
quorum = 1
deadline_s = 30
stragglers = "fail"
seed = 7
launcher = "process"
[strategy]
name = "fedprox"
options = { proximal_mu = 0.1 }
[aggregation]
updates = "aggregated"
[config]
local-epochs = 3
[evaluate]
every = 2
fraction = 0.5
metric = "auc"
[resources]
cpu = 2
memory_mib = 512
gpu = 1
[data.a]
set = "medpar"
[data.b]
path = "/srv/b"
[privacy]
mechanism = "central-gaussian"
clip = 1.0
noise_multiplier = 1.1
epsilon = 8.0
delta = 1e-5
"""
)


def _read(source: str, policy: bytes = POLICY) -> JobSpec:
    return JobSpec.from_toml(source, policy=parse_policy(policy))


def test_defaults_are_complete() -> None:
    spec = _read(MINIMUM)
    assert spec.quorum == 2
    assert spec.stragglers == "drop"
    assert spec.strategy.name == "app"
    assert spec.privacy is None
    assert spec.aggregation.updates == "aggregated"
    assert len(spec.policy_digest) == 32


@pytest.mark.parametrize("source", [MINIMUM, FULL], ids=["minimum", "full"])
def test_round_trips(source: str) -> None:
    spec = _read(source)
    assert JobSpec.from_toml(spec.to_toml()) == spec
    assert JobSpec.from_json(spec.to_json()) == spec
    again = JobSpec.from_json(spec.canonical())
    assert again.digest() == spec.digest()
    assert (again.sites, again.data, again.privacy) == (spec.sites, spec.data, spec.privacy)


names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
scalars = st.one_of(
    st.text(max_size=10),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
)


def _valid(option: str) -> st.SearchStrategy[str | int | float]:
    """Values of an option, of its type."""
    if option == "averaged" or option.endswith("_key"):
        return st.text(min_size=1, max_size=10).filter(lambda text: "\0" not in text)
    if option == "pre_aggregation":
        return st.sampled_from(["none", "nnm"])
    if option in ("staleness", "weights"):
        return st.sampled_from({"staleness": ["constant", "hinge"], "weights": ["equal"]}[option])
    whole = ("iterations", "buffer_size", "concurrency", "max_staleness")
    if option.startswith("num_") or option in whole:
        return st.integers(1, 3)
    if option == OVER_SELECT:
        return st.just(1.0)
    return st.floats(0.2, 0.4) if option == "beta" else st.floats(0.1, 0.9)


@st.composite
def strategies(draw: st.DrawFn, quorum: int, root: str) -> StrategySpec:
    name = draw(st.sampled_from(sorted(STRATEGIES)))
    known = sorted(STRATEGIES[name])
    chosen = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    options = {key: draw(_valid(key)) for key in {*chosen, *REQUIRED.get(name, ())}}
    if "root_site" in options:
        options["root_site"] = root
    assume(not too_few_updates(name, options, quorum))
    assume(not mixing_fault(name, options))
    return StrategySpec(name=name, options=options)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    sites = tuple(draw(st.lists(names, min_size=1, max_size=5, unique=True)))
    quorum = draw(st.integers(1, len(sites)))
    strategy = draw(strategies(quorum, sites[0]))
    assume(not [*faults_of_versions(strategy, sites, Placement(), quorum)])
    return JobSpec(
        name=draw(names),
        app=draw(st.text(min_size=1, max_size=20).filter(lambda t: "\0" not in t)),
        rounds=draw(st.integers(1, 10_000)),
        sites=sites,
        policy="policy.toml",
        policy_digest=draw(st.binary(min_size=32, max_size=32)),
        quorum=quorum,
        deadline_s=draw(st.floats(1, 604_800)),
        stragglers=draw(st.sampled_from(["drop", "fail"])),
        seed=draw(st.integers(0, 2**63 - 1)),
        owner_key=draw(
            st.one_of(st.just(""), st.binary(min_size=32, max_size=32).map(owner_key_text))
        ),
        strategy=strategy,
        config=draw(st.dictionaries(names.filter(lambda n: n[0].isalpha()), scalars, max_size=4)),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_any_job_survives_toml_and_json(spec: JobSpec) -> None:
    assert JobSpec.from_toml(spec.to_toml()) == spec
    assert JobSpec.from_json(spec.to_json()) == spec
    assert JobSpec.from_json(spec.canonical()).digest() == spec.digest()


def test_an_app_that_receives_single_updates_cannot_promise_privacy() -> None:
    asked = FULL.replace('"aggregated"', '"visible-to-app"')
    with pytest.raises(ConfigError, match=r":16: aggregation\.updates: .* \[privacy\] protects"):
        _read(asked)
    without = asked[: asked.index("[privacy]")]
    spec = _read(without)
    assert spec.aggregation.visible
    assert JobSpec.from_toml(spec.to_toml()) == spec
    assert spec.digest() != _read(without.replace('"visible-to-app"', '"aggregated"')).digest()
    with pytest.raises(ConfigError, match=r'aggregation\.updates: must be one of "aggregated"'):
        _read(FULL.replace('"aggregated"', '"visible"'))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_under_privacy_a_strategy_needs_nothing_but_the_mean(name: str) -> None:
    needed = {"buffer_size": "5", "client_learning_rate": "0.1", "root_site": '"a"'}
    options = "".join(f"{key} = {needed[key]}" for key in REQUIRED.get(name, ()))
    text = (
        FULL.replace(
            '"fedprox"\noptions = { proximal_mu = 0.1 }', f'"{name}"\noptions = {{ {options} }}'
        )
        .replace('["a", "b"]', '["a", "b", "c", "d", "e"]')
        .replace("quorum = 1", "quorum = 5")
    )
    if name in {"app", *MEAN_FAMILY}:
        assert _read(text).privacy is not None
        return
    reason = "needs a number of each site" if name in STREAMING else "needs the updates of single"
    if name in ASYNCHRONOUS:
        reason = "makes a version of differences to several models"
    if name == "fedasync":
        text = text.replace("quorum = 5", "quorum = 1")
    with pytest.raises(ConfigError, match=rf'strategy\.name: "{name}" {reason}'):
        _read(text)
    assert _read(text[: text.index("[privacy]")]).strategy.name == name


_SHARES = '"distributed-gaussian"\nshares = 2'


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ((_SHARES,), r"quorum: is 1, below the 2 shares"),
        ((_SHARES.replace("= 2", "= 3"),), r"privacy\.shares: must be at most the 2 sites"),
        (
            ('"central-gaussian"\nsampling = "cyclic"\ngroups = 3',),
            r"groups: must be at most the 2",
        ),
        (('"local-gaussian"\n[compression]\nupdate = "bf16"',), r"compression\.update: cannot be"),
    ],
)
def test_a_round_has_the_sites_that_its_privacy_needs(changes: tuple[str], fault: str) -> None:
    promise = FULL[FULL.index("[privacy]") :]
    key, value = 'mechanism = "central-gaussian"\n', changes[0]
    assert key in promise
    own, _, more = value.partition("[compression]")
    text = FULL.replace(key, f"mechanism = {own.rstrip()}\n")
    text += f"\n[compression]{more}\n" if more else ""
    with pytest.raises(ConfigError, match=fault):
        _read(text)
    assert _read(text.replace("quorum = 1", "quorum = 2")) if "shares = 2" in text else True


@pytest.mark.parametrize("name", ["krum", "fedmedian"])
def test_updates_that_are_private_by_themselves_may_go_into_any_rule(name: str) -> None:
    text = (
        FULL.replace('"fedprox"\noptions = { proximal_mu = 0.1 }', f'"{name}"')
        .replace('["a", "b"]', '["a", "b", "c", "d", "e"]')
        .replace("quorum = 1", "quorum = 5")
        .replace('"central-gaussian"', '"local-gaussian"')
    )
    assert _read(text).strategy.name == name
    with pytest.raises(ConfigError, match="needs the loss of each site"):
        _read(text.replace(f'"{name}"', '"qfedavg"\noptions = { client_learning_rate = 0.1 }'))


# --- strategies -----------------------------------------------------------------------

_SEVEN = MINIMUM.replace('["a", "b"]', '["a", "b", "c", "d", "e", "f", "g"]')


@pytest.mark.parametrize(
    ("strategy", "quorum", "words"),
    [
        ('name = "bulyan"', 3, ""),
        ('name = "bulyan"', 2, r"needs 3 updates in each round \(n >= 4f \+ 3"),
        ('name = "bulyan"\noptions = { num_malicious_nodes = 1 }', 7, ""),
        ('name = "bulyan"\noptions = { num_malicious_nodes = 1 }', 6, "needs 7 updates"),
        ('name = "krum"\noptions = { num_malicious_nodes = 1 }', 5, ""),
        (
            'name = "krum"\noptions = { num_malicious_nodes = 1 }',
            4,
            r"with num_malicious_nodes = 1 needs 5 updates in each round \(n >= 2f \+ 3, Blanchard",
        ),
        ('name = "multikrum"\noptions = { num_nodes_to_select = 5 }', 5, ""),
        (
            'name = "multikrum"\noptions = { num_malicious_nodes = 1, num_nodes_to_select = 5 }',
            5,
            "of the 5 of a round only 4 are not malicious",
        ),
        ('name = "fedmedian"', 3, ""),
        ('name = "fedmedian"', 2, "the median of two is their mean"),
        ('name = "fedtrimmedavg"', 5, ""),
        ('name = "fedtrimmedavg"', 4, "with beta = 0.2 needs 5 updates in each round"),
        ('name = "fedtrimmedavg"\noptions = { beta = 0 }', 7, "beta = 0 trims nothing"),
        # Of seven sites a round asks three, and has three updates.
        (
            'name = "krum"\noptions = { num_malicious_nodes = 1, fraction_train = 0.5 }',
            7,
            "a round of this job may have 3",
        ),
        ('name = "fedavg"', 1, ""),
        ('name = "normclip"', 3, ""),
        ('name = "normclip"', 2, "the median of two norms is their mean"),
        ('name = "normclip"\noptions = { clip_norm = 0.5 }', 1, ""),
        ('name = "fltrust"\noptions = { root_site = "a" }', 2, ""),
        ('name = "fltrust"\noptions = { root_site = "a" }', 1, "the root's and another one"),
        (
            'name = "fedmedian"\noptions = { num_malicious_nodes = 2, pre_aggregation = "nnm" }',
            5,
            "",
        ),
        (
            'name = "fedmedian"\noptions = { num_malicious_nodes = 2, pre_aggregation = "nnm" }',
            4,
            r"with num_malicious_nodes = 2 needs 5 updates in each round \(nnm: n >= 2f \+ 1",
        ),
        (
            'name = "krum"\noptions = { num_malicious_nodes = 2, pre_aggregation = "nnm" }',
            6,
            r"needs 7 updates in each round \(n >= 2f \+ 3",
        ),
    ],
)
def test_a_robust_rule_is_refused_where_it_would_guarantee_nothing(
    strategy: str, quorum: int, words: str
) -> None:
    source = f"{_SEVEN}quorum = {quorum}\n[strategy]\n{strategy}\n"
    if not words:
        assert _read(source).quorum == quorum
        return
    with pytest.raises(ConfigError, match=rf"job.toml:8: strategy\.name: .*{words}"):
        _read(source)


@pytest.mark.parametrize(
    ("strategy", "key", "words"),
    [
        (
            'name = "fedmedian"\noptions = { pre_aggregation = "nnm" }',
            "pre_aggregation",
            "needs num_malicious_nodes from 1 on",
        ),
        (
            'name = "krum"\noptions = { pre_aggregation = "bucketing" }',
            "pre_aggregation",
            'must be one of "none", "nnm"',
        ),
        ('name = "fedavg"\noptions = { pre_aggregation = "nnm" }', "pre_aggregation", "not an"),
        ('name = "normclip"\noptions = { clip_norm = 0 }', "clip_norm", "a number above 0"),
        (
            'name = "fltrust"\noptions = { root_site = "h" }',
            "root_site",
            "'h' is not a site of this job",
        ),
        (
            'name = "fltrust"\noptions = { root_site = "a" }\n[placement]\nchoose = 3',
            "root_site",
            r"may not be among the sites that \[placement\] chooses",
        ),
    ],
)
def test_options_of_a_robust_rule_that_do_not_fit_are_refused(
    strategy: str, key: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.options\.{key}: .*{words}"):
        _read(f"{_SEVEN}[strategy]\n{strategy}\n")


def test_a_job_that_was_accepted_before_stays_readable(tmp_path: Path) -> None:
    source = f'{_SEVEN}quorum = 2\n[strategy]\nname = "krum"\n'
    accepted = dataclasses.replace(
        _read(source.replace("quorum = 2", "quorum = 3")), quorum=2, seed=1
    )
    assert JobSpec.from_json(accepted.to_json()) == accepted
    (tmp_path / "job.toml").write_text(source)
    (tmp_path / "policy.toml").write_bytes(POLICY)
    for read in (lambda: JobFiles.load(tmp_path / "job.toml"), lambda: _read(accepted.to_toml())):
        with pytest.raises(ConfigError, match="needs 3 updates"):
            read()


def test_a_rule_counts_the_sites_that_a_placement_chooses() -> None:
    chosen = _SEVEN + '[strategy]\nname = "krum"\n[placement]\nchoose = {}\n'
    assert _read(chosen.format(3)).quorum == 3
    with pytest.raises(ConfigError, match="may have 2"):
        _read(chosen.format(2))


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("fedadam", "eta", '"x"', r'must be a number above 0, up to 1e\+09, not "x"'),
        ("fedadam", "eta", "true", "must be a number above 0"),
        ("fedyogi", "beta_2", "1.0", "must be a number from 0 up to, not including, 1, not 1.0"),
        ("fedprox", "proximal_mu", "-0.1", "must be a number from 0"),
        ("fedavg", "fraction_train", "0", "must be a number above 0, up to 1, not 0"),
        (
            "fedtrimmedavg",
            "beta",
            "0.5",
            "must be a number from 0 up to, not including, 0.5, not 0.5",
        ),
        ("krum", "num_malicious_nodes", "1.0", "must be a whole number from 0 to 8191, not 1.0"),
        ("multikrum", "num_nodes_to_select", "0", "must be a whole number from 1"),
        ("fedavg", "weighted_by_key", "3", "must be text of 1 to 64 characters"),
    ],
)
def test_an_option_has_the_type_of_its_strategy(
    name: str, option: str, value: str, words: str
) -> None:
    source = f'{_SEVEN}[strategy]\nname = "{name}"\noptions = {{ {option} = {value} }}\n'
    with pytest.raises(ConfigError, match=rf"job.toml:8: strategy\.options\.{option}: {words}"):
        _read(source)


def test_an_option_without_a_default_is_asked_for() -> None:
    source = _SEVEN + '[strategy]\nname = "qfedavg"\n'
    with pytest.raises(ConfigError, match="needs the option 'client_learning_rate'"):
        _read(source)
    assert _read(source + "options = { client_learning_rate = 0.1 }").strategy.options


# --- digest ---------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_how_the_file_is_written() -> None:
    spec = _read(FULL)
    table = spec.to_table()
    shuffled = dumps(dict(reversed(list(table.items()))))
    with_comments = FULL.replace("\n", "  # noted\n").replace("# noted\n\n", "\n")
    assert _read(shuffled).digest() == spec.digest()
    assert _read(with_comments).digest() == spec.digest()
    moved = FULL.replace('app = "app"', 'app = "elsewhere/app"')
    assert _read(moved).digest() == spec.digest()
    commented = POLICY + b"# a comment\n"
    assert _read(FULL, commented).digest() == spec.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "medpar"', 'name = "medpar2"'),
        ("rounds = 5", "rounds = 6"),
        ('sites = ["a", "b"]', 'sites = ["b", "a"]'),
        ('sites = ["a", "b"]', 'sites = ["a", "b", "c"]'),
        ("quorum = 1", "quorum = 2"),
        ("deadline_s = 30", "deadline_s = 31"),
        ('"fail"', '"drop"'),
        ("seed = 7", "seed = 8"),
        ('launcher = "process"', 'launcher = "any"'),
        ('"fedprox"\noptions = { proximal_mu = 0.1 }', '"fedavg"'),
        ("proximal_mu = 0.1", "proximal_mu = 0.2"),
        ("local-epochs = 3", "local-epochs = 4"),
        ("every = 2", "every = 3"),
        ("fraction = 0.5", "fraction = 0.6"),
        ('metric = "auc"', 'metric = "loss"'),
        ("cpu = 2", "cpu = 3"),
        ("memory_mib = 512", "memory_mib = 513"),
        ("gpu = 1", "gpu = 0"),
        ('set = "medpar"', 'set = "other"'),
        ('path = "/srv/b"', 'path = "/srv/c"'),
        ("clip = 1.0", "clip = 1.1"),
        ("delta = 1e-5", "delta = 1e-6"),
    ],
)
def test_the_digest_changes_with_every_meaning(old: str, new: str) -> None:
    assert old in FULL
    assert _read(FULL.replace(old, new, 1)).digest() != _read(FULL).digest()


def test_the_digest_changes_with_policy_and_owner() -> None:
    spec = _read(FULL)
    other = POLICY.replace(b"sample = true", b"sample = true\ninsecure_debug = true")
    assert _read(FULL, other).digest() != spec.digest()
    owned = f'owner_key = "{owner_key_text(bytes(32))}"\n{FULL}'
    assert _read(owned).digest() != spec.digest()
    assert _read(owned).owner_public_key() == bytes(32)
    assert spec.owner_public_key() == b""


def test_the_workload_digest_is_the_documented_one() -> None:
    job, bundle = bytes(range(32)), bytes(range(32, 64))
    length = (32).to_bytes(4, "big")
    expected = hashlib.sha256(b"fedlearn-workload/1\0" + length + job + length + bundle).digest()
    assert workload_digest(job, bundle) == expected
    assert workload_digest(bundle, job) != expected
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            workload_digest(job, wrong)
        with pytest.raises(ValueError, match="32 bytes"):
            workload_digest(wrong, bundle)


@pytest.mark.parametrize(
    ("source", "job", "signed"),
    [
        (
            MINIMUM,
            "15bc930935bdd1ccb56a56cd747d69286c7b6cc789d90d47ab12866c43c685b4",
            "784627df71c6b7fc3b78fa598c71a521e07fb224c6f459829a15043a39407e32",
        ),
        (
            FULL,
            "00ec5f4d3d87f0a12abfd4e66db118cb75b7ac5b3e6379e12b26dcc58168d5c7",
            "17215e8f636a5b39e499e5cd3f12cb161720e71720d297ff1475853017484898",
        ),
    ],
    ids=["minimum", "full"],
)
def test_digests_and_signed_bytes_stay_what_they_are(source: str, job: str, signed: str) -> None:
    spec = _read(source)
    assignment = Assignment(
        id="a-1",
        job=spec.name,
        site="a",
        spec=spec.to_json(),
        bundle=bytes(32),
        policy=POLICY.decode(),
        workload=workload_digest(spec.digest(), bytes(32)),
        issued=datetime(2026, 3, 1, tzinfo=UTC),
        expires=datetime(2026, 3, 2, tzinfo=UTC),
    )
    assert spec.policy_digest.hex() == (
        "ce0c49d5bba17213ddb923badf5d74941fb4ca7230ef9716daf0560d79d3cd1f"
    )
    assert spec.digest().hex() == job
    assert hashlib.sha256(assignment.to_bytes()).hexdigest() == signed


def test_a_job_is_encoded_once_and_another_one_anew() -> None:
    spec = _read(FULL)
    assert spec.to_json() is spec.to_json()
    assert spec.digest() is spec.digest()
    other = dataclasses.replace(spec, rounds=6)
    six = _read(FULL.replace("rounds = 5", "rounds = 6"))
    assert (other.to_json(), other.digest()) == (six.to_json(), six.digest())
    assert other.digest() != spec.digest()
    assert spec == _read(FULL)


def test_a_job_has_as_many_sites_as_the_mean_adds_updates() -> None:
    names = ", ".join(f'"site-{number}"' for number in range(MAX_SITES - 2))
    spec = _read(FULL.replace('["a", "b"]', f'["a", "b", {names}]'))
    assert len(spec.sites) == MAX_SITES == MAX_UPDATES
    with pytest.raises(ConfigError, match=r"sites: must be a list of 1 to 8191"):
        _read(FULL.replace('["a", "b"]', f'["a", "b", "c", {names}]'))


def test_names_of_sites_that_no_entry_of_the_ledger_can_hold_are_refused() -> None:
    names = ", ".join(f'"{number:063d}"' for number in range(3000))
    with pytest.raises(ConfigError, match=r"job.toml:4: sites: their names have 198008 bytes"):
        _read(FULL.replace('["a", "b"]', f'["a", "b", {names}]'))


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 5", 'rounds = "ten"', "job.toml:3: rounds: must be a whole number from 1 to 10"),
        ("rounds = 5", "rounds = 0", "job.toml:3: rounds: must be"),
        ("rounds = 5", "rouns = 5", "job.toml:3: rouns: unknown key; did you mean 'rounds'?"),
        ("rounds = 5\n", "", "job.toml: needs the key 'rounds'"),
        ('"medpar"', '"Med par"', "job.toml:1: name: must be 1 to 63 of a-z"),
        ('["a", "b"]', "[]", "job.toml:4: sites: must be a list of 1 to 8191"),
        ('["a", "b"]', '["a", "a"]', 'job.toml:4: sites[1]: "a" is listed twice'),
        ("quorum = 1", "quorum = 3", "job.toml:7: quorum: must be at most the 2 sites, not 3"),
        ("deadline_s = 30", "deadline_s = 0", "deadline_s: must be a number from 1 to 604800"),
        ('"fail"', '"wait"', 'stragglers: must be one of "drop", "fail", not "wait"'),
        ("seed = 7", "seed = -1", "seed: must be a whole number from 0"),
        ('"fedprox"', '"fedprix"', 'did you mean "fedprox"?'),
        ("proximal_mu", "proximal_nu", "not an option of \"fedprox\"; did you mean 'proximal_mu'?"),
        ('"fedprox"', '"app"', "the application makes its own strategy"),
        ("local-epochs = 3", "local-epochs = [3]", "config.local-epochs: must be text, a finite"),
        (
            "[data.b]",
            "[data.c]",
            "job.toml:29: data.c: is not a site of this job; add it to `sites`",
        ),
        ('path = "/srv/b"', 'path = "srv/b"', "data.b.path: must be an absolute path"),
        ('path = "/srv/b"', 'path = "/srv/../b"', "data.b.path: must be an absolute path"),
        ('path = "/srv/b"', 'path = "/b"\nset = "x"', "data.b: needs exactly one of set, path"),
        ("clip = 1.0", "clip = -1", "job.toml:33: privacy.clip:"),
        ("clip = 1.0", "clipp = 1.0", "job.toml:33: privacy.clipp: unknown key; did you mean"),
        ("clip = 1.0\n", "", "job.toml:31: privacy: needs the key 'clip'"),
        ("cpu = 2", "cpu = 0", "resources.cpu: must be a number from 0.1 to 1024, not 0"),
        ("seed = 7", 'owner_key = "x25519:AAAA"', "owner_key: has 3 bytes"),
        ("seed = 7", 'owner_key = "x25519:!"', "owner_key: is not base64"),
        ("seed = 7", 'owner_key = "owner.pem"', 'owner_key: must be "x25519:..." here, not a path'),
        ("seed = 7", f'policy_digest = "{"00" * 32}"', "policy_digest: is not the digest of"),
        ("seed = 7", 'policy_digest = "00"', "policy_digest: must be 64 hexadecimal digits"),
    ],
)
def test_a_broken_job_states_what_where_and_what_would_be_right(
    old: str, new: str, message: str
) -> None:
    assert old in FULL
    with pytest.raises(ConfigError) as caught:
        _read(FULL.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_job_whose_parts_do_not_go_together_cannot_be_made_in_code() -> None:
    values: dict[str, Any] = {"name": "j", "app": "a", "rounds": 1, "policy": "p"}
    with pytest.raises(InconsistentValues, match="at most the 1 sites"):
        JobSpec(**values, sites=("a",), quorum=2)
    with pytest.raises(InconsistentValues, match="not an option"):
        StrategySpec(name="fedavg", options={"beta": 1})


def test_without_the_policy_its_digest_is_needed() -> None:
    with pytest.raises(ConfigError, match="policy_digest"):
        JobSpec.from_toml(MINIMUM)
    spec = JobSpec.from_toml(f'policy_digest = "{"ab" * 32}"\n{MINIMUM}')
    assert spec.policy_digest == bytes([0xAB] * 32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": 2}',
        b'{"format": 1}',
        b"\xff",
        b"[" * 9999,
        b"x" * 2**21,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_job_on_the_wire_is_refused(data: bytes) -> None:
    with pytest.raises(JobError):
        JobSpec.from_json(data)


def test_a_job_on_the_wire_is_read_as_strictly_as_a_file() -> None:
    document = json.loads(_read(FULL).to_json())
    for change in ({"rounds": "5"}, {"extra": 1}, {"quorum": 9}, {"privacy": {"clip": 1}}):
        with pytest.raises(JobError):
            JobSpec.from_json(json.dumps({**document, **change}))


# --- files ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_bytes(POLICY)
    (tmp_path / "job.toml").write_text(FULL)
    return tmp_path


def _owned(folder: Path, data: bytes) -> Path:
    (folder / "owner.pem").write_bytes(data)
    (folder / "job.toml").write_text(f'owner_key = "owner.pem"\n{FULL}')
    return folder / "job.toml"


def test_a_job_is_loaded_with_its_policy_and_owner(folder: Path) -> None:
    assert JobSpec.load(folder / "job.toml") == _read(FULL)
    key = X25519PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    spec = JobSpec.load(_owned(folder, pem))
    assert spec.owner_public_key() == key.public_bytes_raw()
    assert str(folder) not in spec.to_json()


def _private_pem() -> bytes:
    key = X25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _other_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_private_pem, "holds a private key"),
        (_other_pem, "is not an X25519 key"),
        (lambda: b"\0\1\2", "is not a public key in PEM"),
        (lambda: b"x" * 100_000, "larger than"),
    ],
    ids=["private", "p256", "binary", "large"],
)
def test_a_wrong_owner_key_is_refused(
    folder: Path, make: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        JobSpec.load(_owned(folder, make()))
    assert "PRIVATE KEY-----" not in str(caught.value)


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "job.toml").write_text(f'owner_key = "gone.pem"\n{FULL}')
    with pytest.raises(ConfigError, match=r"gone\.pem: the owner's public key does not exist"):
        JobSpec.load(folder / "job.toml")
    (folder / "policy.toml").unlink()
    with pytest.raises(ConfigError, match=r"policy\.toml: the policy does not exist"):
        JobSpec.load(folder / "job.toml")
    with pytest.raises(ConfigError, match="the job does not exist"):
        JobSpec.load(folder / "jobs.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        JobSpec.load(folder)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_a_clear_error(source: str | bytes) -> None:
    for text in (
        source,
        MINIMUM + source if isinstance(source, str) else MINIMUM.encode() + source,
    ):
        try:
            JobSpec.from_toml(text, policy=parse_policy(POLICY))
        except ConfigError as error:
            assert str(error)  # noqa: PT017 (some bytes are a job)
    data = source.encode(errors="surrogatepass") if isinstance(source, str) else source
    with pytest.raises(JobError):
        JobSpec.from_json(data)


OWN = {"app", "feddyn", "fednova", "fltrust", "geomedian", "normclip", "scaffold"}
"""Not Flower's; tests/server/flower/aggregation has their tests."""


def test_the_table_of_strategies_is_flowers() -> None:
    import inspect

    strategies = pytest.importorskip("flwr.serverapp.strategy")
    found = {name.lower(): getattr(strategies, name) for name in strategies.__all__}
    for name, options in STRATEGIES.items():
        if name in OWN | ASYNCHRONOUS:
            continue
        parameters = inspect.signature(found[name]).parameters
        of_class = set(options) - {OVER_SELECT} - PRE_AGGREGATION.get(name, set())
        assert of_class <= set(parameters), name
        for option in of_class:
            default = parameters[option].default
            if default is inspect.Parameter.empty:
                assert option in REQUIRED[name], (name, option)
            else:
                assert not option_fault(name, option, default), (name, option)


def test_a_file_that_no_coordinator_takes_is_refused_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"#" * (MAX_JOB_TOML_BYTES + 1))
    with pytest.raises(ConfigError, match="the job"):
        JobFiles.load(path)
