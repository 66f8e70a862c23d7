"""One round of secure aggregation: exact sums, clients that drop out, and a server that lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import QuorumNotReached, RoundError, UpdateRejected
from fedlearn.secure_aggregation import keys, shamir
from fedlearn.secure_aggregation.roster import PublicKeys, Session
from fedlearn.secure_aggregation.spec import SecAggSpec
from tests.fedlearn.secure_aggregation.parties import JOB, Round, vectors

SIZE = 40


def plain_sum(sent: dict[str, Any]) -> Any:
    return np.sum(np.stack(list(sent.values())), axis=0, dtype=next(iter(sent.values())).dtype)


# --- the sum --------------------------------------------------------------------------


@given(
    count=st.integers(3, 12),
    neighbours=st.sampled_from([0, 4, 6]),
    bits=st.sampled_from([32, 64]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_the_sum_of_the_survivors_is_exact_whoever_drops_out_when(
    count: int, neighbours: int, bits: int, seed: int, data: st.DataObject
) -> None:
    spec = SecAggSpec(
        neighbours=neighbours, threshold=0.51, modulus_bits=bits, bits=8, max_weight=1000
    )
    one = Round(count, spec)
    gone: set[str] = set()

    def drop() -> set[str]:
        left = sorted(set(one.sites) - gone)
        some = data.draw(st.sets(st.sampled_from(left), max_size=max(0, len(left) - 3)))
        gone.update(some)
        return gone

    try:
        one.advertise(without=drop())
        one.share(without=drop())
        one.receive(without=drop())
    except UpdateRejected:
        return  # too few are left
    drop()
    sent = vectors(spec, sorted(set(one.sites) - gone), SIZE, seed)
    total = one.mask(sent)
    try:
        one.unmask(without=drop())
        found = one.server.unmasked(total)
    except (QuorumNotReached, UpdateRejected):
        return
    assert found.tobytes() == plain_sum(sent).tobytes()
    assert one.server.wrong == []


@pytest.mark.parametrize("stage", ["advertise", "share", "receive", "mask", "unmask"])
@pytest.mark.parametrize("neighbours", [0, 6])
def test_a_client_may_drop_out_at_each_stage(stage: str, neighbours: int) -> None:
    spec = SecAggSpec(neighbours=neighbours, threshold=0.51)
    one = Round(9, spec)
    lost = {"site-0004"}
    one.advertise(lost if stage == "advertise" else ())
    one.share(lost if stage in {"advertise", "share"} else ())
    one.receive(lost if stage in {"advertise", "share", "receive"} else ())
    sites = [site for site in one.sites if stage == "unmask" or site not in lost]
    sent = vectors(spec, sites, SIZE, 1)
    total = one.mask(sent)
    one.unmask(lost if stage == "unmask" else ())
    assert one.server.unmasked(total).tobytes() == plain_sum(sent).tobytes()
    assert len(sent) == (9 if stage == "unmask" else 8)


def test_a_hundred_clients_with_few_neighbours_and_a_tenth_that_drops_out() -> None:
    spec = SecAggSpec(neighbours=20, threshold=0.55)
    one = Round(100, spec)
    one.advertise()
    one.share()
    one.receive()
    sent = vectors(spec, [site for site in one.sites if site[-1] != "7"], SIZE, 3)
    total = one.mask(sent)
    one.unmask()
    assert one.server.unmasked(total).tobytes() == plain_sum(sent).tobytes()
    assert len(one.server.sealed_to("site-0000")) == 20


def test_too_few_survivors_are_a_named_error() -> None:
    one = Round(6)
    one.advertise()
    one.share()
    one.receive()
    total = one.mask(vectors(one.spec, one.sites[:5], SIZE, 1))
    one.unmask(without=one.sites[:3])
    with pytest.raises(QuorumNotReached, match="cannot be unmasked: site-0000: 2 shares of a"):
        one.server.unmasked(total)


# --- a curious server -----------------------------------------------------------------


def masked_round(count: int = 6, **options: Any) -> tuple[Round, dict[str, Any], Any]:
    one = Round(count, SecAggSpec(**options))
    one.advertise()
    one.share()
    one.receive()
    sent = {site: np.zeros(20_000, np.uint64) for site in one.sites}
    return one, sent, one.mask(sent)


def test_what_the_server_gets_of_a_client_is_uniform_and_no_sum_of_some_is_not() -> None:
    one, sent, _ = masked_round()
    for some in (["site-0000"], one.sites[:2], one.sites[:5]):
        total = np.sum([one.sent[site] for site in some], axis=0, dtype=np.uint64)
        # 256 values of a byte, 160,000 times: chi-square with 255 degrees of freedom.
        counts = np.bincount(total.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert 160 < statistic < 370, some
    assert not any(sent["site-0000"])
    # The common masks cancel, and the clients' own ones remain.
    everyone = np.sum(list(one.sent.values()), axis=0, dtype=np.uint64)
    assert everyone.any()
    again, *_ = masked_round()
    assert (again.sent["site-0000"] != one.sent["site-0000"]).mean() > 0.999


def test_the_updates_of_fewer_than_the_threshold_do_not_decode() -> None:
    one, _, total = masked_round(7)
    survivors = one.server.survivors
    threshold = one.server._graph.threshold
    assert threshold == 4
    for site in one.sites[: threshold - 1]:
        one.server.revealed(site, one.clients[site].unmask(survivors))
    shares = one.server._seeds[6]
    assert len(shares) == threshold - 1
    numbers = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    guess = shamir.combine(numbers).to_bytes(33, "big")[-32:]
    assert keys.commitment(guess) != one.server._commitments[6]
    with pytest.raises(QuorumNotReached):
        one.server.unmasked(total)


def test_a_client_gives_one_secret_of_another_client_and_never_both() -> None:
    one, _, _ = masked_round()
    client = one.clients["site-0000"]
    revealed = client.unmask([0, 1, 2, 3, 4])
    assert sorted(revealed) == [1, 2, 3, 4, 5]
    for other in ([0, 1, 2, 3, 5], [0, 1, 2, 3, 4]):
        with pytest.raises(RoundError, match="asks the client to unmask after 5 of the 5 steps"):
            client.unmask(other)
    # What it gave of client 1 is of the seed, and of client 5 of the private key.
    shares = one.clients["site-0000"]._shares
    assert revealed[1] == shares[1][: shamir.SHARE_BYTES]
    assert revealed[5] == shares[5][shamir.SHARE_BYTES :]


def test_a_server_that_reports_different_survivors_gets_neither_secret() -> None:
    one, _, _ = masked_round(7)
    # To half of the neighbours of client 6 6 is reported as a survivor, and to the others not.
    seeds = [one.clients[site].unmask(range(7))[6] for site in one.sites[:3]]
    private = [one.clients[site].unmask(range(6))[6] for site in one.sites[3:6]]
    threshold = one.server._graph.threshold
    assert len(seeds) < threshold
    assert len(private) < threshold
    for shares in (dict(enumerate(seeds, 1)), dict(enumerate(private, 4))):
        with pytest.raises(UpdateRejected, match="3 shares of a secret arrived, 4 recover it"):
            shamir.recover(shares, threshold, lambda _: True)


def test_the_threshold_is_above_a_half_in_every_graph() -> None:
    from fedlearn.secure_aggregation.graph import Graph

    for count in range(3, 40):
        for neighbours in (0, 4, 8, 16):
            graph = Graph(SecAggSpec(neighbours=neighbours, threshold=0.51), bytes(32), count)
            assert graph.degree < 2 * graph.threshold <= 2 * graph.degree
            around = [graph.neighbours(each) for each in range(count)]
            assert all(len(each) == graph.degree for each in around)
            for each, others in enumerate(around):
                assert each not in others
                assert all(each in around[other] for other in others)


@pytest.mark.parametrize(
    ("survivors", "words"),
    [
        ([1, 2, 3, 4, 5], "with this client's update"),
        ([0, 1, 2, 9], "with this client's update"),
        ([0, 1], "the sum has 2 updates, and this client helps to unmask one of 3"),
        ([0, 1, 2], "2 of this client's neighbours have survived, and 4 are needed"),
    ],
)
def test_a_client_refuses_to_unmask_a_sum_that_is_too_small(
    survivors: list[int], words: str
) -> None:
    one, _, _ = masked_round()
    with pytest.raises(UpdateRejected, match=words):
        one.clients["site-0000"].unmask(survivors)


def test_a_client_refuses_a_sum_below_the_quorum() -> None:
    one = Round(6, quorum=6)
    one.advertise()
    one.share()
    one.receive()
    one.mask(vectors(one.spec, one.sites, SIZE, 1))
    with pytest.raises(UpdateRejected, match="one of 6 at least"):
        one.clients["site-0000"].unmask(range(5))


# --- a server that lies about the roster ----------------------------------------------


def test_clients_with_different_rosters_cannot_read_each_others_shares() -> None:
    one = Round(5)
    one.advertise()
    everyone = one.server.roster.keys
    first, _ = one.clients["site-0000"].share(everyone)
    # The second one is shown another key for a third one.
    other = [*everyone[:4], Round(5).advertise()[4]]
    one.clients["site-0001"].share(other)
    with pytest.raises(UpdateRejected, match="site-0000: sealed shares are not from this client"):
        one.clients["site-0001"].receive({0: first[1], 2: first[2], 3: first[3]})


class _Signed:
    """Credentials of a test: a signature is the site's secret and the statement."""

    def __init__(self, site: str) -> None:
        self.site = site

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        return self.site.encode(), b"signed by " + self.site.encode() + statement

    def verify(self, theirs: PublicKeys, statement: bytes) -> None:
        if theirs.signature != b"signed by " + theirs.site.encode() + statement:
            raise UpdateRejected(f"{theirs.site}: not signed")


def signed_round() -> Round:
    one = Round(5)
    for site, client in one.clients.items():
        client._credentials = _Signed(site)
    return one


def test_keys_that_a_site_has_not_signed_are_refused() -> None:
    one = signed_round()
    everyone = one.advertise()
    forged = keys.public(bytes(range(32)))
    sybil = PublicKeys(
        site="site-0003",
        channel=forged,
        mask=forged,
        chain=b"site-0003",
        signature=everyone[3].signature,
    )
    with pytest.raises(UpdateRejected, match="site-0003: not signed"):
        one.clients["site-0000"].share([*everyone[:3], sybil, everyone[4]])


def test_keys_of_another_session_are_refused() -> None:
    old = signed_round()
    old.session = Session(job=JOB, round=1, id=bytes(15) + b"\1")
    for client in old.clients.values():
        client.session = old.session
    stale = old.advertise()
    one = signed_round()
    everyone = one.advertise()
    with pytest.raises(UpdateRejected, match="site-0002: not signed"):
        one.clients["site-0000"].share([*everyone[:2], stale[2], *everyone[3:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda keys: [*keys, keys[1]], "has 'site-0001' twice"),
        (lambda keys: keys[1:], "lacks 'site-0000'"),
        (lambda keys: keys[:2], "the roster has 2 clients"),
        (
            lambda keys: [
                *keys[:4],
                PublicKeys(
                    site="eve", channel=keys[4].channel, mask=keys[4].mask, chain=b"", signature=b""
                ),
            ],
            "'eve' of the roster is not a site of the job",
        ),
        (
            lambda keys: [
                PublicKeys(
                    site="site-0000",
                    channel=keys[1].channel,
                    mask=keys[1].mask,
                    chain=b"",
                    signature=b"",
                ),
                *keys[1:],
            ],
            "other keys for this client than its own",
        ),
    ],
)
def test_a_roster_that_is_not_one_of_the_job_is_refused(change: Any, words: str) -> None:
    one = Round(5)
    everyone = one.advertise()
    with pytest.raises(UpdateRejected, match=words):
        one.clients["site-0000"].share(change(everyone))


# --- clients that do not follow the protocol ------------------------------------------


def test_a_client_that_reveals_wrong_shares_is_named_and_the_sum_is_right() -> None:
    one = Round(7, SecAggSpec(threshold=0.51))
    one.advertise()
    one.share()
    one.receive()
    sent = vectors(one.spec, one.sites[:6], SIZE, 5)
    total = one.mask(sent)
    one.unmask(without=["site-0001"])
    lies = one.clients["site-0001"].unmask(one.server.survivors)
    wrong = {each: bytes(reversed(share)) for each, share in lies.items()}
    wrong[5] = b"short"
    one.server.revealed("site-0001", wrong)
    assert one.server.unmasked(total).tobytes() == plain_sum(sent).tobytes()
    assert one.server.wrong == ["site-0001"]


def test_too_many_wrong_shares_are_an_error_and_not_a_wrong_sum() -> None:
    one = Round(5)
    one.advertise()
    one.share()
    one.receive()
    total = one.mask(vectors(one.spec, one.sites, SIZE, 5))
    one.unmask(without=one.sites[:3])
    for site in one.sites[:3]:
        lies = one.clients[site].unmask(one.server.survivors)
        one.server.revealed(site, {each: bytes(shamir.SHARE_BYTES) for each in lies})
    with pytest.raises(QuorumNotReached, match="too many of them are wrong"):
        one.server.unmasked(total)


def test_shares_that_do_not_open_name_their_sender() -> None:
    one = Round(5)
    one.advertise()
    one.share()
    sealed = one.server.sealed_to("site-0000")
    sealed[3] = sealed[3][:-1] + bytes([sealed[3][-1] ^ 1])
    with pytest.raises(UpdateRejected, match="site-0003: sealed shares are not from this client"):
        one.clients["site-0000"].receive(sealed)


def test_the_server_refuses_shares_for_or_of_others_and_updates_of_strangers() -> None:
    one = Round(5)
    one.advertise()
    with pytest.raises(UpdateRejected, match="for each neighbour, and for nobody else"):
        one.server.shared("site-0000", {1: b"x"}, bytes(32))
    with pytest.raises(UpdateRejected, match="a commitment has 32 bytes"):
        one.server.shared("site-0000", {1: b"", 2: b"", 3: b"", 4: b""}, b"")
    with pytest.raises(UpdateRejected, match="from a client that shared, once"):
        one.server.masked("site-0000")
    one.share()
    one.server.masked("site-0000")
    with pytest.raises(UpdateRejected, match="from a client that shared, once"):
        one.server.masked("site-0000")
    with pytest.raises(UpdateRejected, match="of neighbours that shared"):
        one.server.revealed("site-0000", {0: bytes(33)})
    with pytest.raises(UpdateRejected, match="the roster lacks 'eve'"):
        one.server.revealed("eve", {})


def test_steps_out_of_order_are_refused() -> None:
    one = Round(4)
    everyone = one.advertise()
    client = one.clients["site-0000"]
    with pytest.raises(RoundError, match="asks the client to mask its update after 1 of the 5"):
        client.masked(np.zeros(3, np.uint64))
    with pytest.raises(RoundError, match="advertise after 1"):
        client.advertise()
    client.share(everyone)
    with pytest.raises(RoundError, match="share after 2"):
        client.share(everyone)
    with pytest.raises(RoundError, match="unmask after 2"):
        client.unmask([0, 1, 2])
    with pytest.raises(UpdateRejected, match="1 of the 3 neighbours have shared"):
        client.receive({1: b""})
