"""Jobs that do not wait for slow sites: defaults, and what they must not be together with."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.job.asynchronous.options import AsynchronousOptions
from fedlearn.job.spec import JobSpec
from fedlearn.job.strategies import client_parts

HEAD = """name = "heart"
app = "app"
rounds = 3
sites = ["a", "b", "c", "d"]
policy = "policy.toml"
policy_digest = "%s"
""" % ("00" * 32)

BUFF = '[strategy]\nname = "fedbuff"\noptions = { buffer_size = 2%s }\n'
ASYNC = '[strategy]\nname = "fedasync"\noptions = { %s }\n'


def test_the_quorum_is_what_a_version_is_made_of() -> None:
    assert JobSpec.from_toml(HEAD + BUFF % "").quorum == 2
    assert JobSpec.from_toml(HEAD + ASYNC % "").quorum == 1
    assert JobSpec.from_toml("quorum = 1\n" + HEAD + BUFF % "").quorum == 1
    spec = JobSpec.from_toml(HEAD + BUFF % "")
    assert JobSpec.from_toml(spec.to_toml()) == spec


def test_the_defaults_are_those_of_the_papers() -> None:
    found = AsynchronousOptions.of("fedasync", {}, 4)
    assert (found.concurrency, found.buffer_size, found.rate) == (4, 1, 0.6)
    assert (found.staleness, found.staleness_a, found.max_staleness) == ("polynomial", 0.5, None)
    hinge = AsynchronousOptions.of("fedbuff", {"buffer_size": 3, "staleness": "hinge"}, 4)
    assert (hinge.staleness_a, hinge.staleness_b, hinge.rate) == (10.0, 4.0, 1.0)
    assert [part.key for part in client_parts("fedasync", {"proximal_mu": 0.1})] == [
        "num-examples",
        "proximal-mu",
    ]
    assert [part.key for part in client_parts("fedasync", {})] == ["num-examples"]


WRONG = {
    "no buffer": ('[strategy]\nname = "fedbuff"\n', "needs the option \"?'?buffer_size"),
    "a buffer above the sites": (
        BUFF.replace("= 2", "= 5") % "",
        r":9: strategy\.options\.buffer_size: must be at most the 4 sites, not 5: a site is in a",
    ),
    "more at once than there are": (
        BUFF % ", concurrency = 5",
        r"strategy\.options\.concurrency: must be at most the 4 sites",
    ),
    "b without a hinge": (
        BUFF % ", staleness_b = 3",
        r'staleness_b: is for staleness = "hinge" only, not "polynomial"',
    ),
    "a of a constant": (
        BUFF % ', staleness = "constant", staleness_a = 1',
        "staleness_a: has no effect",
    ),
    "an unknown weight": (BUFF % ', staleness = "linear"', 'must be one of "constant"'),
    "a mixing above 1": (ASYNC % "mixing = 1.5", "mixing: must be a number above 0, up to 1"),
    "an option of the other": (ASYNC % "buffer_size = 2", 'not an option of "fedasync"'),
    "privacy": (
        BUFF % ""
        + '[privacy]\nmechanism = "central-gaussian"\n'
        + "clip = 1.0\nnoise_multiplier = 1.0\nepsilon = 8.0\ndelta = 1e-5\n",
        r'strategy\.name: "fedbuff" makes a version of differences to several models',
    ),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_excludes_each_other_is_named(name: str) -> None:
    text, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        JobSpec.from_toml(HEAD + text)


def test_a_quorum_above_the_buffer_is_refused() -> None:
    with pytest.raises(ConfigError, match="quorum: must be at most buffer_size, 2, not 3"):
        JobSpec.from_toml("quorum = 3\n" + HEAD + BUFF % "")
    with pytest.raises(ConfigError, match="the one update of which a version is made, 1, not 2"):
        JobSpec.from_toml("quorum = 2\n" + HEAD + ASYNC % "")


OVER = '[strategy]\nname = "fedavg"\noptions = { fraction_train = %g, over_select = 1.5 }\n'
PRIVACY = """[privacy]
mechanism = "central-gaussian"
clip = 1.0
noise_multiplier = 1.0
epsilon = 8.0
delta = 1e-5
"""


def test_over_selection_needs_sites_to_select_from() -> None:
    assert JobSpec.from_toml(HEAD + OVER % 0.5).strategy.options["over_select"] == 1.5
    with pytest.raises(ConfigError, match=r"over_select: is 1.5, and fraction_train is 0.8: their"):
        JobSpec.from_toml(HEAD + OVER % 0.8)
    with pytest.raises(ConfigError, match=r"over_select: goes without \[privacy\]: who answers"):
        JobSpec.from_toml(HEAD + OVER % 0.5 + PRIVACY)
    with pytest.raises(ConfigError, match='not an option of "fedmedian"'):
        JobSpec.from_toml(HEAD + (OVER % 0.5).replace("fedavg", "fedmedian"))
