"""SNP launch digests of firmware, compared with a computation of the tests' own.

The tests' own follows AMD publication 56860, section ``SNP_LAUNCH_UPDATE``, table
``PAGE_INFO``: the digest is chained over each page's content, kind and address. Only the
content of a virtual CPU's first state is the package's, which the digest of a real guest has
confirmed (``docs/reference/evidence.md``).
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attestation.errors import PolicyError
from attestation.policy.references import snp_launch_reference
from fedlearn.cli import main

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed: extra measure")

from sevsnpmeasure.ovmf import OVMF
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

PAGE = 4096
NORMAL, VMSA_PAGE, ZERO, UNMEASURED, SECRETS, CPUID = range(1, 7)
SEC_MEM, SECRETS_AT, CPUID_AT, HASHES_AT = 1, 2, 3, 16
VMSA_ADDRESS = 0xFFFF_FFFF_F000
FOUR_GB = 1 << 32
DEBIAN = Path("/usr/share/ovmf/OVMF.fd")
WITHOUT = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
RESET = 0x80B004
TABLE = 0x810C00
HASHES = {
    "cmdline": "97d02dd8-bd20-4c94-aa78-e7714d36ab2a",
    "initrd": "44baf731-3a2f-4bd7-9af1-41e29169781d",
    "kernel": "4de79437-abd2-427f-b835-d5b172d2045b",
}

debian = pytest.mark.skipif(not DEBIAN.is_file(), reason="no firmware here (apt-get install ovmf)")


class Chain:
    """A launch digest, extended page by page."""

    def __init__(self) -> None:
        self.digest = bytes(48)

    def add(self, kind: int, address: int, content: bytes = b"") -> None:
        inside = hashlib.sha384(content).digest() if content else bytes(48)
        page = struct.pack("<HBB4xQ", 0x70, kind, 0, address)
        self.digest = hashlib.sha384(self.digest + inside + page).digest()

    def region(self, kind: int, address: int, size: int) -> None:
        for at in range(address, address + size, PAGE):
            self.add(kind, at)


def launched(
    path: Path,
    sections: Iterable[tuple[int, int, int]],
    *,
    vcpus: int,
    vmm: str = "qemu",
    hashes: bytes = b"",
    model: str = "EPYC-v4",
) -> bytes:
    """Return the launch digest as the specification and the monitors have it."""
    chain, image = Chain(), path.read_bytes()
    for at in range(0, len(image), PAGE):
        chain.add(NORMAL, FOUR_GB - len(image) + at, image[at : at + PAGE])
    listed = list(sections)
    for address, size, kind in listed:
        if kind == SEC_MEM:
            chain.region(UNMEASURED if vmm == "gce" else ZERO, address, size)
        elif kind == SECRETS_AT:
            chain.add(SECRETS, address)
        elif kind == CPUID_AT and vmm != "ec2":
            chain.add(CPUID, address)
        elif kind == HASHES_AT and hashes:
            chain.add(NORMAL, address, hashes)
        elif kind == HASHES_AT:
            chain.region(ZERO, address, size)
    if vmm == "ec2":
        for address, _, kind in listed:
            if kind == CPUID_AT:
                chain.add(CPUID, address)
    monitor = {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}[vmm]
    reset = OVMF(str(path)).sev_es_reset_eip()
    state = VMSA(SevMode.SEV_SNP, reset, CPU_SIGS[model], 1, monitor)
    for content in state.pages(vcpus):
        chain.add(VMSA_PAGE, VMSA_ADDRESS, bytes(content))
    return chain.digest


def sections_of(path: Path) -> list[tuple[int, int, int]]:
    """Read the SEV metadata of a firmware: address, size and kind of each section."""
    image = path.read_bytes()
    start = image.rindex(b"ASEV")
    count = int.from_bytes(image[start + 12 : start + 16], "little")
    return [struct.unpack_from("<III", image, start + 16 + 12 * n) for n in range(count)]


def firmware(path: Path) -> Path:
    """Write the smallest firmware that an SNP guest with measured kernel could start from."""
    sections = (
        (0x800000, 2 * PAGE, SEC_MEM),
        (0x80D000, PAGE, SECRETS_AT),
        (0x80E000, PAGE, CPUID_AT),
        (0x810000, PAGE, HASHES_AT),
    )
    listed = b"".join(struct.pack("<III", *item) for item in sections)
    metadata = b"ASEV" + struct.pack("<III", 16 + len(listed), 1, len(sections)) + listed
    entries = b""
    behind = 512
    for guid, content in (
        ("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", behind)),
        ("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", RESET)),
        ("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", TABLE, 1024)),
    ):
        size = struct.pack("<H", len(content) + 18)
        entries += content + size + uuid.UUID(guid).bytes_le
    footer = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    table = entries + struct.pack("<H", len(entries) + 18) + footer + b"\x90" * 32
    image = b"\xf4" * (2 * PAGE - behind) + metadata
    image += b"\xf4" * (2 * PAGE - len(image) - len(table)) + table
    path.write_bytes(image)
    return path


def hash_page(kernel: bytes, initrd: bytes, cmdline: bytes) -> bytes:
    """Return the page of hashes that QEMU writes (its ``target/i386/sev.c``)."""
    content = {"cmdline": cmdline + b"\0", "initrd": initrd, "kernel": kernel}
    entries = b"".join(
        uuid.UUID(guid).bytes_le + struct.pack("<H", 50) + hashlib.sha256(content[name]).digest()
        for name, guid in HASHES.items()
    )
    head = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le
    table = head + struct.pack("<H", 18 + len(entries)) + entries
    return (bytes(TABLE % PAGE) + table).ljust(PAGE, b"\0")


@debian
@pytest.mark.parametrize("vmm", ["qemu", "ec2", "gce"])
@pytest.mark.parametrize("vcpus", [1, 2, 4, 64])
def test_real_firmware_gives_the_digest_of_the_specification(vmm: str, vcpus: int) -> None:
    found = snp_launch_reference(ovmf=DEBIAN, vcpus=vcpus, vmm=vmm)
    expected = launched(DEBIAN, sections_of(DEBIAN), vcpus=vcpus, vmm=vmm)
    assert found.value == expected
    assert (found.claim, found.tee) == ("launch", "snp")


@debian
def test_each_thing_that_is_measured_changes_the_digest(tmp_path: Path) -> None:
    other = tmp_path / "OVMF.fd"
    image = bytearray(DEBIAN.read_bytes())
    image[4096] ^= 1
    other.write_bytes(image)
    digests = {
        snp_launch_reference(ovmf=path, vcpus=vcpus, vcpu_type=model, guest_features=features).value
        for path, vcpus, model, features in (
            (DEBIAN, 1, "EPYC-v4", 1),
            (other, 1, "EPYC-v4", 1),
            (DEBIAN, 2, "EPYC-v4", 1),
            (DEBIAN, 1, "EPYC-Milan", 1),
            (DEBIAN, 1, "EPYC-v4", 0x21),
        )
    }
    assert len(digests) == 5


@pytest.mark.skipif(not WITHOUT.is_file(), reason="no firmware here (apt-get install ovmf)")
def test_firmware_that_no_snp_guest_starts_from_is_refused() -> None:
    with pytest.raises(PolicyError, match="no SEV-SNP metadata") as raised:
        snp_launch_reference(ovmf=WITHOUT, vcpus=1)
    assert "OVMF.fd" in raised.value.hint


@debian
def test_a_kernel_under_firmware_without_a_hash_table_is_refused(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    with pytest.raises(PolicyError, match=r"cannot be measured.*SNP_KERNEL_HASHES"):
        snp_launch_reference(ovmf=DEBIAN, vcpus=1, kernel=kernel)


def test_kernel_initrd_and_command_line_are_measured(tmp_path: Path) -> None:
    ovmf = firmware(tmp_path / "OVMF.fd")
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(b"a kernel")
    initrd.write_bytes(b"an initrd")
    page = hash_page(b"a kernel", b"an initrd", b"console=ttyS0")
    given: dict[str, Any] = {"kernel": kernel, "initrd": initrd, "append": "console=ttyS0"}
    for vcpus in (1, 3):
        found = snp_launch_reference(ovmf=ovmf, vcpus=vcpus, **given)
        assert found.value == launched(ovmf, sections_of(ovmf), vcpus=vcpus, hashes=page)
    bare = snp_launch_reference(ovmf=ovmf, vcpus=1)
    assert bare.value == launched(ovmf, sections_of(ovmf), vcpus=1)
    changed = snp_launch_reference(ovmf=ovmf, vcpus=1, **given | {"append": "console=ttyS1"})
    assert len({bare.value, found.value, changed.value}) == 3


def test_the_command_line_prints_it_for_a_policy(tmp_path: Path) -> None:
    ovmf = firmware(tmp_path / "OVMF.fd")
    flags = ["policy", "reference", "snp", "--ovmf", str(ovmf), "--vcpus", "2", "--vmm", "ec2"]
    shown = CliRunner().invoke(main, [*flags, "--name", "image 3"])
    assert shown.exit_code == 0, shown.output
    digest = launched(ovmf, sections_of(ovmf), vcpus=2, vmm="ec2").hex()
    assert f'value = "{digest}"' in shown.output
    assert 'name = "image 3"' in shown.output
    broken = CliRunner().invoke(main, [*flags[:-1], "xen"])
    assert broken.exit_code != 0
    ovmf.write_bytes(ovmf.read_bytes()[:-1])
    refused = CliRunner().invoke(main, flags)
    assert refused.exit_code == 1, refused.output
    assert "Traceback" not in refused.output


@pytest.mark.parametrize("cut", [0, 1, 40, 100, 4096])
def test_broken_firmware_is_an_error_of_ours(tmp_path: Path, cut: int) -> None:
    ovmf = firmware(tmp_path / "OVMF.fd")
    ovmf.write_bytes(ovmf.read_bytes()[:cut])
    with pytest.raises(PolicyError):
        snp_launch_reference(ovmf=ovmf, vcpus=1)
    with pytest.raises(PolicyError, match="vmm"):
        snp_launch_reference(ovmf=ovmf, vcpus=1, vmm="xen")
