"""What real hardware produced, through the command line: each with the outcome it must have."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attestation.evidence import Evidence, Tee
from attestation.policy.parse import parse_policy
from fedlearn.cli import main
from fedlearn.cli.job import template

VECTORS = Path(os.environ.get("FEDLEARN_VECTORS", Path(__file__).parents[5] / "shared/vectors"))

pytestmark = pytest.mark.skipif(
    not (VECTORS / "manifest.json").is_file(),
    reason="no real evidence here; FEDLEARN_VECTORS names its folder",
)


@dataclass(frozen=True)
class Case:
    """Evidence with what belongs to it. ``tcb`` and ``claims`` are what must come out."""

    evidence: str
    format: str
    verifier: str
    endorsements: tuple[str, ...] = ()
    collateral: str = ""
    at: str = "2025-06-20T00:00:00Z"
    tcb: str = ""
    advisories: tuple[str, ...] = ()
    report_data: str = ""

    def flags(self, flag: str = "--evidence", **changes: str | None) -> list[str]:
        values: dict[str, str | None] = {
            "format": self.format,
            "at": self.at,
            "collateral": self.collateral,
            **changes,
        }
        if values["collateral"]:
            values["collateral"] = str(VECTORS / str(values["collateral"]))
        flags = [flag, str(VECTORS / self.evidence)]
        for item in self.endorsements:
            flags += ["--endorsement", str(VECTORS / item)]
        for name, value in values.items():
            flags += [f"--{name.replace('_', '-')}", value] if value else []
        return flags


TDX = Case(
    evidence="tdx_v4_quote_phala.bin",
    format="tdx-quote",
    verifier="tdx",
    collateral="tdx_v4_quote_phala.collateral.json",
    tcb="UpToDate",
)
SGX = Case(
    evidence="sgx_v3_quote_phala.bin",
    format="tdx-quote",
    verifier="tdx",
    collateral="sgx_v3_quote_phala.collateral.json",
    tcb="ConfigurationAndSWHardeningNeeded",
    advisories=("INTEL-SA-00289", "INTEL-SA-00615"),
    report_data=b"Hello, world!".ljust(64, b"\0").hex(),
)
SNP = Case(
    evidence="snp_v2_report_virtee_milan.hex",
    format="snp-report",
    verifier="snp",
    endorsements=("snp_vcek_virtee_milan.der", "amd_ask_ark_milan.pem"),
)
VLEK = Case(
    evidence="snp_vlek_report_trustee.bin",
    format="snp-report",
    verifier="snp",
    endorsements=("snp_vlek_trustee.der", "amd_asvk_ark_milan.pem"),
)
AZURE = Case(
    evidence="az_snp_vtpm_evidence_v1.json",
    format="azure-vtpm",
    verifier="azure",
    endorsements=("az_snp_vcek.pem",),
    report_data=b"challenge".hex(),
)
TPM = Case(
    evidence="swtpm/attest.bin",
    format="tpm",
    verifier="tpm",
    endorsements=("swtpm/sig.bin", "swtpm/ak.pem", "swtpm/pcrs.bin"),
    report_data="7c3db95bd40adb9bf92c526c499d3f86ee722e4519942418c2e3eef6837bf1a4",
)
GENUINE = [TDX, SGX, SNP, VLEK, AZURE, TPM]
STARTED = {
    TDX.evidence: ("mrtd", "rtmr1", "rtmr2"),
    SGX.evidence: ("mrenclave",),
    SNP.evidence: ("launch",),
    VLEK.evidence: ("launch",),
    AZURE.evidence: ("launch", "pcr.4", "pcr.9"),
    TPM.evidence: ("pcr.0",),
}
"""What identifies the launch of each, all of it needed."""

OTHERWISE = {
    AZURE.evidence: ("id_key_digest", "pcr.8", "pcr.11", "pcr.12"),
    SGX.evidence: ("mrsigner",),
}
"""What would do instead, in part or whole."""
V5 = Case(
    evidence="tdx_v5_quote_phala_outdated.bin",
    format="tdx-quote",
    verifier="tdx",
    collateral="tdx_v5_fmspc90C06F.collateral.json",
    at="2026-02-20T00:00:00Z",
)
NO_COLLATERAL = Case(evidence="gcp_cos113_tdx_quote.bin", format="tdx-quote", verifier="tdx")
DEBUG = Case(evidence="trustee_tdx_quote_4.dat", format="tdx-quote", verifier="tdx")


def name(case: Case) -> str:
    return case.evidence


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["policy", *map(str, arguments)])
    assert "Traceback" not in result.output
    assert "Warning" not in result.stderr
    return result


def needs(case: Case) -> None:
    if importlib.util.find_spec(f"attestation.verifiers.{case.verifier}") is None:
        pytest.skip(f"this tree has no {case.verifier} verifier")


def verdict(case: Case, policy: Path, **changes: str | None) -> tuple[int, dict[str, Any]]:
    result = run("verify", *case.flags("--evidence", **changes), "--policy", policy, "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, document


def refusals(document: dict[str, Any]) -> set[str]:
    return {item["claim"] for item in document["findings"] if item["tier"] != "affirming"}


@pytest.fixture
def drafted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Path]:
    case: Case = request.param
    needs(case)
    policy = tmp_path / "policy.toml"
    made = run("init", *case.flags("--from-evidence"), "--output", policy)
    assert made.exit_code == 0, made.output
    return case, policy


@pytest.mark.parametrize("drafted", GENUINE, ids=name, indirect=True)
def test_a_drafted_policy_affirms_genuine_evidence(drafted: tuple[Case, Path]) -> None:
    case, policy = drafted
    status, document = verdict(case, policy)
    assert status == 0, document
    assert document["status"] == "affirming"
    assert document["advisories"] == list(case.advisories)
    if case.tcb:
        assert document["tcb_status"] == case.tcb
    text = run("explain", *case.flags(), "--policy", policy)
    assert text.exit_code == 0
    assert "affirming" in text.output


def without(text: str, *claims: str) -> str:
    """Return a drafted policy without its reference values for ``claims``."""
    for claim in claims:
        pattern = (
            rf'\[\[reference\]\]\n(?:#[^\n]*\n)?claim = "{re.escape(claim)}"\nvalue = [^\n]*\n'
        )
        text, removed = re.subn(pattern, "", text)
        assert removed == 1, claim
    return text


@pytest.mark.parametrize("drafted", GENUINE, ids=name, indirect=True)
def test_without_its_launch_nothing_is_affirmed(drafted: tuple[Case, Path], tmp_path: Path) -> None:
    case, policy = drafted
    template.write(tmp_path / "job", "job")
    job = tmp_path / "job" / "job.toml"
    whole = policy.read_text()

    def statuses(text: str) -> tuple[int, int, int]:
        policy.write_text(text)
        (job.parent / "policy.toml").write_text(text)
        validated = CliRunner().invoke(main, ["job", "validate", str(job)])
        assert ("nothing pins" in validated.output) is (validated.exit_code != 0)
        linted = run("lint", policy)
        assert ("error: nothing pins" in linted.output) is (linted.exit_code != 0)
        return verdict(case, policy)[0], linted.exit_code, validated.exit_code

    pinned = without(whole, *OTHERWISE.get(case.evidence, ()))
    assert statuses(pinned) == (0, 0, 0)
    for claim in STARTED[case.evidence]:
        assert statuses(without(pinned, claim)) == (2, 1, 1)
        assert refusals(verdict(case, policy)[1]) - {"binding"} == {"launch_identity"}
    text = run("explain", *case.flags(), "--policy", policy)
    assert "refused  launch_identity" in text.output
    assert "from      verifier" in text.output


def test_a_gpu_of_the_drafted_evidence_is_required(tmp_path: Path) -> None:
    gpu = Evidence(
        tee=Tee.NVIDIA,
        quote=bytes.fromhex((VECTORS / GPU).read_text().strip()),
        endorsements=((VECTORS / "nv_hopper_chain.txt").read_bytes(),),
    )
    alone = Evidence(tee=Tee.TDX, quote=(VECTORS / TDX.evidence).read_bytes())
    files = {"alone": tmp_path / "alone.json", "both": tmp_path / "both.json"}
    files["alone"].write_bytes(alone.to_bytes())
    files["both"].write_bytes(replace(alone, components=(gpu,)).to_bytes())
    beside = ("--collateral", VECTORS / TDX.collateral, "--at", "2025-07-01T00:00:00Z")
    policy = tmp_path / "policy.toml"
    made = run("init", "--from-evidence", files["both"], *beside, "--output", policy)
    assert made.exit_code == 0, made.output

    def verified(which: str) -> tuple[int, set[str]]:
        result = run("verify", "--evidence", files[which], *beside, "--policy", policy, "--json")
        return result.exit_code, refusals(json.loads(result.stdout)) - {"binding"}

    assert verified("both") == (0, set())
    assert verified("alone") == (2, {"nvidia"})
    assert "nvidia.required" not in run("lint", policy).output
    policy.write_text(policy.read_text().replace("required = true", "required = false"))
    assert verified("alone")[0] == 0
    assert "nvidia.required does not ask for" in run("lint", policy).output


@pytest.mark.parametrize("drafted", GENUINE, ids=name, indirect=True)
def test_the_binding_decides_when_it_is_given(drafted: tuple[Case, Path]) -> None:
    case, policy = drafted
    if case.report_data:
        status, document = verdict(case, policy, report_data=case.report_data)
        assert status == 0, document
    status, document = verdict(case, policy, report_data="ab" * 64)
    assert status == 2
    assert document["findings"]


@pytest.mark.parametrize("drafted", GENUINE, ids=name, indirect=True)
def test_any_other_value_in_the_policy_refuses(drafted: tuple[Case, Path]) -> None:
    case, policy = drafted
    text = policy.read_text()
    for reference in parse_policy(text.encode()).references:
        value = reference.value.hex()
        other = f"{int(value[0], 16) ^ 1:x}{value[1:]}"
        before = f'claim = "{reference.claim}"\nvalue = "{value}"'
        policy.write_text(text.replace(before, before.replace(value, other)))
        status, document = verdict(case, policy)
        assert status == 2
        assert reference.claim in refusals(document)


@pytest.mark.parametrize("drafted", GENUINE, ids=name, indirect=True)
def test_nothing_vouches_for_evidence_on_its_own(drafted: tuple[Case, Path]) -> None:
    case, policy = drafted
    if case.verifier in ("tpm", "azure"):
        pytest.skip("the pieces of this evidence are all there is")
    bare = Case(evidence=case.evidence, format=case.format, verifier=case.verifier, at=case.at)
    status, document = verdict(bare, policy)
    assert status == 2
    assert {"tcb_status"} <= refusals(document) or document["claims"] == {}


@pytest.mark.parametrize("drafted", [TDX, SGX, VLEK], ids=name, indirect=True)
@pytest.mark.parametrize("at", ["2024-01-01T00:00:00Z", "2026-06-01T00:00:00Z"])
def test_before_and_after_its_endorsements_it_is_refused(
    drafted: tuple[Case, Path], at: str
) -> None:
    case, policy = drafted
    status, document = verdict(case, policy, at=at)
    assert status == 2
    assert document["status"] != "affirming"


@pytest.mark.parametrize("case", [V5, NO_COLLATERAL, DEBUG], ids=name)
def test_what_must_not_pass_is_refused(case: Case, tmp_path: Path) -> None:
    needs(case)
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'accept = ["tdx"]\n[tdx]\ntcb_status = ["UpToDate", "OutOfDate", "SWHardeningNeeded"]\n'
        "require_attributes = []\n"
    )
    status, document = verdict(case, policy)
    assert status == 2
    assert refusals(document) >= ({"tcb_status"} if not case.collateral else set())
    assert ("debug" in refusals(document)) == (case is DEBUG)


@pytest.mark.parametrize(("case", "word"), [(NO_COLLATERAL, "TCB"), (DEBUG, "debug mode")])
def test_a_draft_states_what_it_does_not_accept(case: Case, word: str, tmp_path: Path) -> None:
    needs(case)
    policy = tmp_path / "policy.toml"
    made = run("init", *case.flags("--from-evidence"), "--output", policy)
    assert made.exit_code == 0
    assert word in made.stderr
    assert verdict(case, policy)[0] == 2


def test_nothing_is_drafted_from_what_is_not_genuine(tmp_path: Path) -> None:
    needs(V5)
    policy = tmp_path / "policy.toml"
    assert run("init", *V5.flags("--from-evidence"), "--output", policy).exit_code == 2
    assert not policy.exists()


@pytest.mark.parametrize(
    ("log", "status"), [("gcp_ccel_data.dat", 2), ("trustee_CCEL_data_ovmf", 2)]
)
def test_a_log_must_be_that_of_the_quote(log: str, status: int, tmp_path: Path) -> None:
    needs(NO_COLLATERAL)
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["tdx"]\n')
    code, document = verdict(NO_COLLATERAL, policy, event_log=str(VECTORS / log))
    assert code == status
    ours = log.startswith("gcp")
    assert bool(document["claims"]) == ours
    assert ("event log" in refusals(document)) != ours


@pytest.mark.parametrize(
    ("case", "claim"), [(SGX, "tcb_status"), (SGX, "advisories"), (VLEK, "snp.vmpl")]
)
def test_the_defaults_are_strict(case: Case, claim: str, tmp_path: Path) -> None:
    needs(case)
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["sgx", "snp"]\n')
    status, document = verdict(case, policy)
    assert status == 2
    assert claim in refusals(document)


@pytest.mark.parametrize("case", GENUINE, ids=name)
def test_a_flipped_bit_is_refused(case: Case, tmp_path: Path) -> None:
    needs(case)
    policy = tmp_path / "policy.toml"
    policy.write_text(f'accept = ["{case.verifier}"]\n')
    data = bytearray((VECTORS / case.evidence).read_bytes())
    for at in range(0, len(data), max(1, len(data) // 40)):
        damaged = data.copy()
        damaged[at] ^= 1
        target = tmp_path / "damaged"
        target.write_bytes(damaged)
        flags = [str(target) if item.endswith(case.evidence) else item for item in case.flags()]
        result = run("verify", *flags, "--policy", policy)
        assert result.exit_code in (1, 2), result.output


EVIDENCE = {case.evidence for case in (*GENUINE, V5, NO_COLLATERAL, DEBUG)}
LOGS = {"gcp_ccel_data.dat", "trustee_CCEL_AAEL_alibabacloud", "trustee_CCEL_data_ovmf"}
BESIDE = {
    "gcp_cos113_nonce.dat",
    "nv_hopper_chain.txt",
    "swtpm/ak.pem",
    "swtpm/nonce.bin",
    "swtpm/pcrs.bin",
    "swtpm/qualifying_data.bin",
    "swtpm/sig.bin",
    "swtpm/spki.der",
}
"""What counts only together with evidence, besides certificates and collateral."""

GPU = "nv_hopper_report.txt"


def manifest() -> list[str]:
    path = VECTORS / "manifest.json"
    return sorted(json.loads(path.read_bytes())) if path.is_file() else []


@pytest.mark.parametrize("file", manifest())
def test_every_file_is_shown_or_named_for_what_it_is(file: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["evidence", "show", str(VECTORS / file)])
    assert "Traceback" not in result.output
    shown = file in EVIDENCE | LOGS | {GPU}
    known = shown or file in BESIDE or file.endswith((".der", ".pem", ".collateral.json"))
    assert known, f"{file} has no expectation here"
    assert result.exit_code == (0 if shown else 1), result.output
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["tdx", "sgx", "snp", "tpm", "azure-vtpm"]\n')
    bare = run("verify", "--evidence", VECTORS / file, "--policy", policy, "--json")
    # Alone and now, nothing of this passes: too old, without endorsements, or no evidence.
    assert bare.exit_code == (2 if file in EVIDENCE - {TPM.evidence} else 1), bare.output
    if bare.exit_code == 1:
        error = json.loads(bare.stdout)["error"]
        assert file in error["message"]
        assert error["hint"]


def test_the_document_has_the_keys_that_programs_read(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["tdx"]\n')
    for case in (TDX, V5):
        _, document = verdict(case, policy)
        assert document.keys() >= {
            "status",
            "tee",
            "tcb_status",
            "advisories",
            "claims",
            "findings",
        }
        for finding in document["findings"]:
            assert finding.keys() >= {"claim", "expected", "actual", "tier"}


@pytest.mark.parametrize("drafted", [SNP, TDX], ids=name, indirect=True)
def test_a_folder_does_what_files_do(drafted: tuple[Case, Path], tmp_path: Path) -> None:
    case, policy = drafted
    folder = tmp_path / "collateral"
    folder.mkdir()
    for item in (*case.endorsements, case.collateral):
        if item:
            (folder / item).write_bytes((VECTORS / item).read_bytes())
    flags = ["--evidence", VECTORS / case.evidence, "--collateral", folder, "--at", case.at]
    assert run("verify", *flags, "--policy", policy).exit_code == 0
    for kept in folder.iterdir():
        kept.unlink()
    assert run("verify", *flags, "--policy", policy).exit_code == 1
    assert "holds no collateral" in run("verify", *flags, "--policy", policy).output


@pytest.mark.parametrize(
    ("file", "word"),
    [("swtpm/nonce.bin", "is not"), ("gcp_ccel_data.dat", "is not"), ("manifest.json", "is not")],
)
def test_collateral_of_another_kind_is_named(file: str, word: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('accept = ["tdx"]\n')
    flags = ["--evidence", VECTORS / TDX.evidence, "--collateral", VECTORS / file]
    result = run("verify", *flags, "--policy", policy)
    assert result.exit_code == 1
    assert word in result.stderr
    assert file in result.stderr
