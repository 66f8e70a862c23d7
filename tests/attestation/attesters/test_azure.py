"""The Azure attester against a real software TPM that is set up as Azure's paravisor does."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from attestation.attesters.azure import AK_HANDLE, HCL_INDEX, AzureAttester
from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.errors import AttesterError, SignatureError
from attestation.evidence import Tee
from attestation.quotes.tpm_keys import PublicArea
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.vectors import azure, keys
from tests.vectors.amd import Amd
from tests.vectors.cases import binding
from tests.vectors.intel import APP, JOB, Intel

pytestmark = pytest.mark.swtpm
AMD = Amd()
_RESTRICTED = "restricted|sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"


@pytest.fixture(scope="module")
def paravisor(software_tpm: SoftwareTpm) -> Tpm2Tools:
    """A TPM with an RSA attestation key where Azure has it."""
    tools = Tpm2Tools(software_tpm.tcti)
    make_key(tools)
    return tools


def make_key(tools: Tpm2Tools) -> None:
    """Make an attestation key where Azure has it."""
    with tools.workspace(objects=True) as work:
        work.run(
            *("createprimary", "-Q", "-C", "e", "-G", "rsa2048:rsassa-sha256:null"),
            *("-a", _RESTRICTED, "-c", "ak.ctx"),
        )
        work.run("evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", AK_HANDLE)


def write_report(tools: Tpm2Tools, *, intel: Intel | None = None, own_key: bool = True) -> None:
    """Write the paravisor's report over the attestation key into its NV index."""
    with tools.workspace() as work:
        work.run("readpublic", "-Q", "-c", AK_HANDLE, "-o", "public")
        key = PublicArea.parse_sized(work.read("public")).key
    assert isinstance(key, rsa.RSAPublicKey)
    chosen = key if own_key else keys.rsa_key("azure ak").public_key()
    report = azure.hcl_report(chosen, amd=AMD, intel=intel)
    with tools.workspace() as work:
        work.write("report", report)
        with contextlib.suppress(AttesterError):
            work.run("nvundefine", "-Q", "-C", "o", HCL_INDEX)
        work.run("nvdefine", "-Q", "-C", "o", "-s", str(len(report)), HCL_INDEX)
        work.run("nvwrite", "-Q", "-C", "o", "-i", "report", HCL_INDEX)


def trust() -> TrustAnchors:
    return TrustAnchors(
        amd_ark_keys=frozenset({AMD.root_key}), endorsements=(AMD.leaf(), AMD.authorities())
    )


def test_a_vtpm_under_a_hardware_report(paravisor: Tpm2Tools, tmp_path: Path) -> None:
    write_report(paravisor)
    attester = AzureAttester(tmp_path / "tpm", tcti=paravisor.tcti, scope="job-1")
    attester.extend("app", APP)
    attester.extend("job", JOB)
    evidence = attester.collect(binding())
    assert evidence.tee is attester.tee is Tee.AZURE_VTPM
    claims = verify(evidence, binding=binding(), trust=trust(), now=keys.AT)
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert claims.hardware_id == AMD.chip_id
    assert claims.attributes["azure.secure-boot"] is True


def test_a_report_over_another_key_is_refused(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    tools = Tpm2Tools(fresh_tpm.tcti)
    make_key(tools)
    write_report(tools, own_key=False)
    evidence = AzureAttester(tmp_path / "tpm", tcti=tools.tcti).collect(binding())
    with pytest.raises(SignatureError):
        verify(evidence, binding=binding(), trust=trust(), now=keys.AT)


def test_other_platforms_are_an_error(paravisor: Tpm2Tools, tmp_path: Path) -> None:
    write_report(paravisor, intel=Intel())
    with pytest.raises(AttesterError, match="tdx"):
        AzureAttester(tmp_path / "tpm3", tcti=paravisor.tcti)


def test_a_tpm_without_a_report_is_an_error(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    with pytest.raises(AttesterError):
        AzureAttester(tmp_path / "tpm4", tcti=fresh_tpm.tcti)
