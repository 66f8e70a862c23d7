"""Makes the test vectors of this folder, the same bytes every time.

Everything in them is signed by roots of our own, whose keys follow from names: they test
both directions of every path, and prove nothing to anybody else. ``make.py --check`` makes
them again and prints what differs; without it they are written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from attestation.trust import key_digest
from tests.fakes.synthetic_tpm import SyntheticTpm
from tests.vectors import azure, keys
from tests.vectors.amd import Amd
from tests.vectors.intel import APP, JOB, Intel, event_log

DATA = Path(__file__).parent / "data"
REPORT_DATA = hashlib.sha512(b"the report data of every vector").digest()


def build() -> dict[str, bytes]:
    """Return every file, by name."""
    intel = Intel()
    log, rtmrs = event_log()
    files = {
        "ccel.bin": log,
        "sgx_v3_quote.bin": intel.sgx_quote(report_data=REPORT_DATA),
        "sgx_collateral.json": intel.collateral("SGX"),
        "tdx_collateral.json": intel.collateral(),
        "tdx_v4_quote.bin": intel.quote(4, report_data=REPORT_DATA, rtmrs=rtmrs),
        "tdx_v5_quote.bin": intel.quote(5, report_data=REPORT_DATA, rtmrs=rtmrs),
    }
    for product in ("Milan", "Genoa", "Turin"):
        amd, lower = Amd(product=product), product.lower()
        for kind, middle in (("vcek", "ask"), ("vlek", "asvk")):
            files[f"snp_{lower}_{kind}_report.bin"] = amd.report(
                5 if product == "Turin" else 3, kind=kind, report_data=REPORT_DATA
            )
            files[f"snp_{lower}_{kind}.der"] = amd.leaf(kind)
            files[f"snp_{lower}_{middle}_ark.pem"] = amd.authorities(middle)
    files["snp_milan_v2_report.bin"] = Amd().report(2, report_data=REPORT_DATA)
    files["azure_snp.json"] = azure.evidence(REPORT_DATA[:32])
    files["azure_tdx.json"] = azure.evidence(REPORT_DATA[:32], intel=intel)
    for kind, key in (("ecdsa", keys.ec_key("tpm ak")), ("rsassa", keys.rsa_key("tpm ak"))):
        tpm = SyntheticTpm(key=key, scheme=kind, banks=("sha256", "sha384"))
        tpm.measure("app", APP)
        tpm.measure("job", JOB)
        files[f"tpm_{kind}_quote.bin"] = tpm.quote(REPORT_DATA[:32]).to_bytes()
        files["tpm_log.bin"] = tpm.log.to_bytes()
    manifest = {
        "at": keys.AT.isoformat(),
        "report_data": REPORT_DATA.hex(),
        "intel_root": intel.root_key.hex(),
        "amd_ark": Amd().root_key.hex(),
        "tpm_aks": [
            key_digest(key.public_key()).hex()
            for key in (keys.ec_key("tpm ak"), keys.rsa_key("tpm ak"))
        ],
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
    return files


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    files = build()
    there = {path.name for path in DATA.glob("*")} if DATA.is_dir() else set()
    if arguments.check:
        wrong = [name for name, data in files.items() if not _same(DATA / name, data)]
        for name in sorted({*wrong, *(there - files.keys())}):
            print(f"{name} differs")
        return 1 if wrong or there - files.keys() else 0
    DATA.mkdir(exist_ok=True)
    for name in there - files.keys():
        (DATA / name).unlink()
    for name, data in files.items():
        (DATA / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")
    return 0


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


if __name__ == "__main__":
    sys.exit(main())
