"""The example that ``--help`` of each command shows.

A new command gets a line here. ``tests/fedlearn/cli/test_help.py`` checks that each command has
one, and that its flags exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["EXAMPLES", "epilog"]

_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

EXAMPLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "fedlearn": "fedlearn job init my-job && fedlearn job try my-job/job.toml",
        "fedlearn demo": "fedlearn demo --data digits",
        "fedlearn data": "fedlearn data show data",
        "fedlearn data split": (
            "fedlearn data split fashion-mnist --partition dirichlet --clients 10 --out data"
        ),
        "fedlearn data show": "fedlearn data show data --plot data.png",
        "fedlearn simulate": "fedlearn simulate job.toml --clients 100 --workers 4",
        "fedlearn audit": "fedlearn audit poisoning my-job/job.toml --rules fedavg,krum",
        "fedlearn audit inversion": "fedlearn audit inversion my-job/job.toml --batch 1",
        "fedlearn audit membership": "fedlearn audit membership my-job/job.toml --shadows 32",
        "fedlearn audit epsilon": "fedlearn audit epsilon my-job/job.toml --canaries 1000",
        "fedlearn audit poisoning": (
            "fedlearn audit poisoning my-job/job.toml --rules fedavg,krum --attackers 0.2"
        ),
        "fedlearn audit backdoor": (
            "fedlearn audit backdoor my-job/job.toml --rules fedavg,normclip --start 10"
        ),
        "fedlearn bench": "fedlearn bench confidentiality",
        "fedlearn bench confidentiality": (
            "fedlearn bench confidentiality --app digits --rounds 10"
        ),
        "fedlearn experiment": "fedlearn experiment run experiment.toml",
        "fedlearn experiment run": "fedlearn experiment run experiment.toml --jobs 4",
        "fedlearn experiment resume": "fedlearn experiment resume experiment.toml --failed",
        "fedlearn experiment status": "fedlearn experiment status experiment.toml --json",
        "fedlearn experiment report": "fedlearn experiment report experiment.toml --out report",
        "fedlearn completion": 'eval "$(fedlearn completion bash)"',
        "fedlearn job": "fedlearn job submit my-job/job.toml --follow",
        "fedlearn job init": (
            "fedlearn job init my-job --sites north,south --new-owner-key owner.pem"
        ),
        "fedlearn job files": "fedlearn job files mortality --state state --out files",
        "fedlearn job validate": "fedlearn job validate my-job/job.toml",
        "fedlearn job try": "fedlearn job try my-job/job.toml --tee sample",
        "fedlearn job submit": "fedlearn job submit my-job/job.toml --follow",
        "fedlearn job status": "fedlearn job status mortality --json",
        "fedlearn job logs": "fedlearn job logs mortality --site north --key owner.pem --round 3",
        "fedlearn job events": "fedlearn job events mortality --format csv --out events.csv",
        "fedlearn job metrics": "fedlearn job metrics mortality --out mortality.csv",
        "fedlearn job report": "fedlearn job report mortality --out mortality.html",
        "fedlearn job compare": (
            "fedlearn job compare mortality mortality@2 runs/mortality-1 --out compare.html"
        ),
        "fedlearn job cancel": "fedlearn job cancel mortality",
        "fedlearn job revoke": "fedlearn job revoke mortality --site north --reason 'wrong data'",
        "fedlearn job readmit": "fedlearn job readmit mortality --site north",
        "fedlearn job delete": "fedlearn job delete mortality@1 --keep-model",
        "fedlearn job clone": "fedlearn job clone mortality@2 --out mortality-3",
        "fedlearn job policy": "fedlearn job policy mortality my-job/policy.toml",
        "fedlearn job resume": "fedlearn job resume mortality",
        "fedlearn job track": "fedlearn job track mortality --to mlflow --at http://127.0.0.1:5000",
        "fedlearn site": "fedlearn site list",
        "fedlearn site token": "fedlearn site token north --out north.token",
        "fedlearn site list": "fedlearn site list --json",
        "fedlearn site show": "fedlearn site show north",
        "fedlearn site approve": f"fedlearn site approve north --ek {_SHA256}",
        "fedlearn site reject": "fedlearn site reject north",
        "fedlearn site drain": "fedlearn site drain north",
        "fedlearn site remove": "fedlearn site remove north",
        "fedlearn site enroll": "fedlearn site enroll --token-file north.token --state state",
        "fedlearn operator": "fedlearn operator request alice",
        "fedlearn operator request": "fedlearn operator request alice",
        "fedlearn operator login": f"fedlearn operator login operator.toml --ca-pin {_SHA256}",
        "fedlearn operator renew": "fedlearn operator renew",
        "fedlearn operator list": "fedlearn operator list",
        "fedlearn operator add": "fedlearn operator add bob bob.csr --out bob.toml",
        "fedlearn operator revoke": "fedlearn operator revoke bob --reason 'left the project'",
        "fedlearn local": "fedlearn local up --sites 3",
        "fedlearn local up": "fedlearn local up --sites 3 --data my-job=my-job/data",
        "fedlearn local status": "fedlearn local status --json",
        "fedlearn local add-site": "fedlearn local add-site site-d",
        "fedlearn local down": "fedlearn local down --purge",
        "fedlearn policy": "fedlearn policy lint policy.toml",
        "fedlearn policy verify": (
            "fedlearn policy verify --evidence evidence.cbor --policy policy.toml"
        ),
        "fedlearn policy explain": (
            "fedlearn policy explain --evidence evidence.cbor --policy policy.toml"
        ),
        "fedlearn policy lint": "fedlearn policy lint policy.toml",
        "fedlearn policy init": "fedlearn policy init --from-evidence evidence.cbor",
        "fedlearn policy reference": "fedlearn policy reference initdata initdata.toml",
        "fedlearn policy reference initdata": "fedlearn policy reference initdata initdata.toml",
        "fedlearn policy reference event-log": "fedlearn policy reference event-log ccel.bin",
        "fedlearn policy reference image": (
            f"fedlearn policy reference image registry.example/client@sha256:{_SHA256}"
        ),
        "fedlearn policy reference snp": "fedlearn policy reference snp --ovmf OVMF.fd --vcpus 4",
        "fedlearn policy keygen": "fedlearn policy keygen --out policy-key.pem",
        "fedlearn policy sign": "fedlearn policy sign policy.toml --key operator.pem",
        "fedlearn evidence": "fedlearn evidence show quote.bin",
        "fedlearn evidence show": "fedlearn evidence show quote.bin",
        "fedlearn evidence collect": "fedlearn evidence collect --output evidence.cbor",
        "fedlearn evidence development-key": (
            "fedlearn evidence development-key state/insecure-development.key"
        ),
        "fedlearn collateral": "fedlearn collateral check --directory collateral",
        "fedlearn collateral show": "fedlearn collateral show --directory collateral",
        "fedlearn collateral check": "fedlearn collateral check --directory collateral",
        "fedlearn collateral fetch": (
            "fedlearn collateral fetch --directory collateral --evidence evidence.cbor"
        ),
        "fedlearn collateral add": "fedlearn collateral add certs/*.pem --directory collateral",
        "fedlearn model": "fedlearn model open my-model.sealed --key owner.pem",
        "fedlearn model keygen": "fedlearn model keygen --out owner.pem",
        "fedlearn model list": "fedlearn model list mortality",
        "fedlearn model download": "fedlearn model download mortality --out mortality.flsw",
        "fedlearn model open": "fedlearn model open my-model.sealed --key owner.pem",
        "fedlearn model export": (
            "fedlearn model export my-model.sealed --key owner.pem --out weights.safetensors"
        ),
        "fedlearn model verify": "fedlearn model verify --state state --config server.toml",
        "fedlearn model rotate": "fedlearn model rotate mortality --state state",
        "fedlearn ledger": "fedlearn ledger verify",
        "fedlearn ledger show": "fedlearn ledger show --kind refusal",
        "fedlearn ledger verify": "fedlearn ledger verify",
        "fedlearn ledger head": "fedlearn ledger head",
        "fedlearn ledger contributions": "fedlearn ledger contributions --job mortality",
        "fedlearn privacy": "fedlearn privacy plan --epsilon 3 --rounds 50 --sites 100",
        "fedlearn privacy plan": (
            "fedlearn privacy plan --epsilon 3 --delta 1e-5 --rounds 10 --examples 6000 --batch 512"
        ),
        "fedlearn doctor": "fedlearn doctor --edge site.toml",
        "fedlearn-server": "fedlearn-server run --config server.toml",
        "fedlearn-server init": (
            "fedlearn-server init --operator-csr operator.csr --passphrase-file passphrase"
        ),
        "fedlearn-server completion": 'eval "$(fedlearn-server completion bash)"',
        "fedlearn-server establish": "fedlearn-server establish",
        "fedlearn-server run": "fedlearn-server run --config server.toml",
        "fedlearn-server app-host": (
            "fedlearn-server app-host --socket /run/apps/socket --scratch /tmp/apps"
        ),
        "fedlearn-server operator": "fedlearn-server operator bob bob.csr --out bob.toml",
        "fedlearn-server measure": "fedlearn-server measure --config server.toml",
        "fedlearn-server adopt": "fedlearn-server adopt --config server.toml",
        "fedlearn-server check": "fedlearn-server check --config server.toml",
        "fedlearn-edge": "fedlearn-edge run --config site.toml",
        "fedlearn-edge init": (
            "fedlearn-edge init --token-file north.token --data medpar=/srv/medpar"
        ),
        "fedlearn-edge completion": 'eval "$(fedlearn-edge completion bash)"',
        "fedlearn-edge run": "fedlearn-edge run --config site.toml",
        "fedlearn-edge check": "fedlearn-edge check --config site.toml",
        "fedlearn-edge approve": f"fedlearn-edge approve mortality {_SHA256}",
        "fedlearn-edge policies": "fedlearn-edge policies --json",
        "fedlearn-edge budget": "fedlearn-edge budget show",
        "fedlearn-edge budget show": "fedlearn-edge budget show",
        "fedlearn-edge budget reset": "fedlearn-edge budget reset --insecure-forget-spent",
    }
)
"""By the command's full name."""


def epilog(command: str) -> str | None:
    """Return the end of the help of ``command``; None where the table has no example of it."""
    found = EXAMPLES.get(command)
    return None if found is None else f"\b\nExample:\n  {found}"
