"""A site decides for itself: every reason to refuse has its test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from attestation.policy.parse import parse_policy
from attestation.policy.sign import operator_key_digest, sign_policy
from edge.agent.site_policy import Answer, Decision, decide
from edge.config.site import SiteConfig
from fedlearn.job.spec import JobSpec

BUNDLE = bytes([0xAB] * 32)
NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
JOB = f"""\
name = "mortality-1"
app = "app"
rounds = 5
sites = ["a", "b"]
policy = "policy.toml"
policy_digest = "{"00" * 32}"
launcher = "any"
[resources]
cpu = 1
[data.a]
set = "medpar"
[privacy]
mechanism = "central-gaussian"
clip = 1.0
noise_multiplier = 1.1
epsilon = 4.0
delta = 1e-6
"""
SITE = f"""\
state = "state"
[data.medpar]
path = "medpar"
jobs = ["mortality-*"]
[accept]
bundles = ["{"ab" * 32}"]
[privacy]
required = true
max_epsilon = 8
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "medpar").mkdir()
    return tmp_path


def _decide(
    folder: Path,
    *,
    site: tuple[str, str] = ("", ""),
    job: tuple[str, str] = ("", ""),
    name: str = "a",
    bundle: bytes = BUNDLE,
    now: datetime = NOON,
    running: int = 0,
    approved: bool = False,
    policy: str = "",
    signature: bytes = b"",
) -> Decision:
    assert site[0] in SITE
    assert job[0] in JOB
    (folder / "site.toml").write_text(SITE.replace(*site))
    config = SiteConfig.load(folder / "site.toml")
    spec = JobSpec.from_toml(JOB.replace(*job))
    return decide(
        config,
        spec,
        site=name,
        bundle=bundle,
        now=now,
        running=running,
        approved=approved,
        policy=policy,
        policy_signature=signature,
    )


def test_a_job_that_fits_runs_on_its_data(folder: Path) -> None:
    found = _decide(folder)
    assert found == Decision(answer=Answer.RUN, reasons=(), data=str((folder / "medpar").resolve()))


_BY_APP = (
    'mechanism = "central-gaussian"',
    'mechanism = "dp-sgd"\nunit = "example"\nbatch_rate = 0.1\nsteps = 2',
)


def test_what_its_app_does_itself_runs_where_the_site_names_the_unit(folder: Path) -> None:
    def answered(unit: str) -> Answer:
        site = ("max_epsilon = 8", f'max_epsilon = 8\nunit = "{unit}"')
        return _decide(folder, job=_BY_APP, site=site).answer

    assert answered("example") is Answer.RUN
    assert answered("user") is answered("site") is Answer.REFUSE
    # Whoever protects a whole site protects its examples.
    site = ("max_epsilon = 8", 'max_epsilon = 8\nunit = "example"')
    assert _decide(folder, site=site).answer is Answer.RUN


@pytest.mark.parametrize(
    ("job", "site", "words"),
    [
        (_BY_APP, ("", ""), "protects each example, as far as its app does"),
        (('["a", "b"]', '["a"]'), ("", ""), "does not name the site b"),
        (
            ('launcher = "any"', 'launcher = "kubernetes"'),
            ("", ""),
            "wants the launcher kubernetes",
        ),
        (("cpu = 1", "cpu = 5"), ("state =", "caps.cpu = 4\nstate ="), "cpu = 5"),
        (("epsilon = 4.0", "epsilon = 9.0"), ("", ""), "epsilon 9 is above"),
        (("", ""), ("max_epsilon = 8", "max_delta = 1e-9"), "delta 1e-06 is above"),
        (("", ""), ("max_epsilon = 8", "min_noise_multiplier = 2"), "multiplier 1.1 is below"),
        (("delta = 1e-6", "delta = 1e-6\ninsecure_deterministic_noise = true"), ("", ""), "seed"),
        ((JOB[JOB.index("[privacy]") :], ""), ("", ""), "has no [privacy]"),
        ((JOB[JOB.index("[privacy]") :], ""), ("required = true", ""), "has no [privacy]"),
        (('set = "medpar"', 'set = "other"'), ("", ""), "no data set 'other'"),
        (('set = "medpar"', 'path = "/etc"'), ("", ""), "not below accept.data_paths"),
        (('set = "medpar"', 'claim = "c"'), ("", ""), "the claim c is not a data set"),
        (('"mortality-1"', '"other-1"'), ("", ""), "is not for the job other-1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(
    folder: Path, job: tuple[str, str], site: tuple[str, str], words: str
) -> None:
    name = "b" if "site b" in words else "a"
    for approved in (False, True):
        found = _decide(folder, job=job, site=site, name=name, approved=approved)
        assert found.answer is Answer.REFUSE
        assert any(words in reason for reason in found.reasons)
        assert found.data == ""


@pytest.mark.parametrize("floor", ["required = true", "max_epsilon = 8", "max_delta = 1e-3"])
def test_metrics_without_noise_leave_where_the_site_asks_for_it_by_name(
    folder: Path, floor: str
) -> None:
    exact = ("delta = 1e-6", "delta = 1e-6\ninsecure_exact_metrics = true")
    old = "required = true\nmax_epsilon = 8"
    found = _decide(folder, job=exact, site=(old, floor))
    assert found.answer is Answer.REFUSE
    assert "metrics leave the site without noise (insecure_exact_metrics)" in found.reasons[0]
    named = (old, f"{floor}\ninsecure_exact_metrics = true")
    assert _decide(folder, job=exact, site=named).answer is Answer.RUN
    assert _decide(folder, job=exact, site=(old, "")).answer is Answer.RUN


def test_a_job_whose_app_receives_single_updates_runs_where_the_site_allows_it(
    folder: Path,
) -> None:
    visible = (JOB[JOB.index("[privacy]") :], '[aggregation]\nupdates = "visible-to-app"\n')
    refuses = ("required = true\nmax_epsilon = 8", "")
    found = _decide(folder, job=visible, site=refuses, approved=True)
    assert found.answer is Answer.REFUSE
    assert "accept.visible_updates of this site does not allow it" in found.reasons[0]
    allows = (SITE[SITE.index("[privacy]") :], "visible_updates = true\n")
    assert _decide(folder, job=visible, site=allows).answer is Answer.RUN


def test_unknown_code_is_refused_asked_about_or_let_in_by_name(folder: Path) -> None:
    other = bytes(32)
    assert _decide(folder, bundle=other).answer is Answer.REFUSE
    ask = ("[accept]", '[accept]\nother_bundles = "ask"')
    assert _decide(folder, bundle=other, site=ask).answer is Answer.ASK
    assert _decide(folder, bundle=other, site=ask, approved=True).answer is Answer.RUN
    let_in = ("[accept]", '[accept]\nother_bundles = "insecure-accept"')
    assert _decide(folder, bundle=other, site=let_in).answer is Answer.RUN


def test_a_person_is_asked(folder: Path) -> None:
    manual = ("[accept]", '[accept]\napproval = "manual"')
    assert _decide(folder, site=manual).answer is Answer.ASK
    assert _decide(folder, site=manual, approved=True).answer is Answer.RUN


def test_a_job_waits_for_the_hours_and_for_room(folder: Path) -> None:
    night = ("[accept]", '[accept]\nhours = "20:00-06:00"')
    waits = _decide(folder, site=night)
    assert waits.answer is Answer.WAIT
    assert waits.reasons == ("this site runs jobs at 20:00-06:00 UTC only",)
    assert _decide(folder, site=night, now=NOON + timedelta(hours=9)).answer is Answer.RUN
    elsewhere = datetime(2026, 6, 1, 23, 0, tzinfo=timezone(timedelta(hours=11)))
    assert _decide(folder, site=night, now=elsewhere).answer is Answer.WAIT
    assert _decide(folder, running=8).answer is Answer.WAIT


def test_a_path_may_not_leave_what_the_site_allows(folder: Path) -> None:
    allow = ("[accept]", f'[accept]\ndata_paths = ["{folder}/medpar"]')
    inside = ('set = "medpar"', f'path = "{folder}/medpar/2024"')
    assert _decide(folder, site=allow, job=inside).data == f"{folder.resolve()}/medpar/2024"
    (folder / "medpar/link").symlink_to("/etc")
    outside = ('set = "medpar"', f'path = "{folder}/medpar/link/passwd"')
    assert _decide(folder, site=allow, job=outside).answer is Answer.REFUSE


def test_a_site_may_ask_who_signed_the_policy(folder: Path) -> None:
    known, stranger = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    text = 'version = 1\naccept = ["tpm"]'
    policy = parse_policy(text.encode())
    signed = sign_policy(policy, known)
    key = operator_key_digest(known.public_key()).hex()
    asks = ("[accept]", f'[accept]\npolicy_keys = ["{key}"]')
    names = ("00" * 32, policy.digest.hex())

    def answer(**given: Any) -> Decision:
        return _decide(folder, **{"site": asks, "job": names, "policy": text, **given})

    assert answer(signature=signed).answer is Answer.RUN
    assert answer(signature=signed).policy == policy
    for found, words in (
        (answer(), "is not signed"),
        (answer(signature=sign_policy(policy, stranger)), "not a known operator"),
        (answer(signature=b"junk"), "policy signature"),
        (answer(signature=signed, job=("", "")), "not the one that the job names"),
        (answer(signature=signed, policy=text + "\nrequire = 1"), "not acceptable here"),
        (answer(signature=signed, policy='version = 1\naccept = ["sample"]'), "another policy"),
    ):
        assert found.answer is Answer.REFUSE
        assert found.policy is None
        assert words in "; ".join(found.reasons)
    # A site that does not ask runs it signed or not.
    assert _decide(folder, policy=text) == _decide(folder)
    assert _decide(folder).answer is Answer.RUN


def test_a_job_that_refuses_filters_is_refused_where_the_site_demands_some(folder: Path) -> None:
    site = ("max_epsilon = 8", 'max_epsilon = 8\nfilters = [{ kind = "clip", norm = 1.0 }]')
    job = ("[resources]", '[aggregation]\nsite_filters = "refuse"\n[resources]')
    found = _decide(folder, site=site, job=job)
    assert found.answer is Answer.REFUSE
    assert "this site filters every update (clip), and the job does not accept" in found.reasons[0]
    assert _decide(folder, site=site).answer is Answer.RUN
    assert _decide(folder, job=job).answer is Answer.RUN


def test_a_job_that_names_no_data_gets_the_only_one(folder: Path) -> None:
    none = ('[data.a]\nset = "medpar"\n', "")
    assert _decide(folder, job=none).answer is Answer.RUN
    two = ("[accept]", '[data.more]\npath = "medpar"\n[accept]')
    assert _decide(folder, job=none, site=two).answer is Answer.REFUSE
