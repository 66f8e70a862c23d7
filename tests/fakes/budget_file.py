"""The budgets of a site with one data set, and a counter that pretends to be a TPM's."""

from __future__ import annotations

from attestation.errors import AttesterError
from edge.agent.budget_store import BudgetStore
from edge.agent.data_budget import BudgetAccounts, limits
from edge.config.site import SiteConfig
from fedlearn.job.spec import JobSpec

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


def place(config: SiteConfig, name: str = "stays") -> str:
    return config.data[name].place


def store(config: SiteConfig, counter: Counter | None = None, key: bytes = KEY) -> BudgetStore:
    return BudgetStore(config, key, counter=counter)


def spent(config: SiteConfig, book: BudgetAccounts) -> float:
    return book.epsilon(next(limits(config)))
