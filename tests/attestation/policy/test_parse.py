"""Policy files: what they may contain, and that every mistake names its key and line."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.config import InconsistentValues
from attestation.errors import PolicyError
from attestation.evidence import Tee
from attestation.policy.model import MAX_POLICY_BYTES, ReferenceValue, TdxRules
from attestation.policy.parse import parse_policy

FULL = b"""\
version = 7
name = "hospitals"
accept = ["tpm", "tdx", "tpm"]
insecure_sample = true
insecure_debug = false

[[reference]]
claim = "app"
value = "AB01"
name = "client 1.0"
not_before = 2026-01-01T00:00:00Z
not_after = "2026-07-01T02:00:00+02:00"

[[reference]]
claim = "mrtd"
value = "cd"
tee = "tdx"

[require]
claims = ["job", "app"]

[freshness]
lifetime_s = 600
max_age_s = 60

[nodes]
site-a = ["00ff", "01"]
site-b = []

[tdx]
tcb_status = ["SWHardeningNeeded", "UpToDate"]
advisories_allowed = ["INTEL-SA-00837"]
min_tcb_evaluation = 17
require_attributes = []
forbid_attributes = ["perfmon"]

[sgx]
mrenclave = ["%s"]
isv_prod_id = 1
min_isv_svn = 2

[snp]
max_vmpl = 1
allow_migration = true
allow_smt = false
require_single_socket = true
products = ["Turin", "Milan"]
min_guest_svn = 7
require_policy = ["page_swap_disable"]
require_platform = ["alias_check"]
require_launch_mitigations = [3, 0]
require_current_mitigations = [63]
[snp.min_tcb]
microcode = 115
fmc = 1
[snp.min_committed_tcb]
snp = 22
[snp.min_launch_tcb]
snp = 21

[tpm]
require_safe_clock = true
firmware = [0x20240001]
pcrs = [14, 0, 7]

[nvidia]
required = true

[coordinator]
accept = ["snp"]
[[coordinator.reference]]
claim = "launch"
value = "ee"
[coordinator.snp]
products = ["Genoa"]
""" % (b"11" * 32)


def test_everything_that_a_policy_can_state() -> None:
    policy = parse_policy(FULL)
    assert (policy.version, policy.name) == (7, "hospitals")
    assert policy.accept == (Tee.TDX, Tee.TPM)
    assert policy.insecure_sample
    assert not policy.insecure_debug
    app, mrtd = policy.references
    assert app.value == b"\xab\x01"
    assert app.not_before == datetime(2026, 1, 1, tzinfo=UTC)
    assert app.not_after == datetime(2026, 7, 1, tzinfo=UTC)
    assert (app.tee, mrtd.tee) == (None, Tee.TDX)
    assert policy.require == ("app", "job")
    assert policy.lifetime == timedelta(minutes=10)
    assert policy.max_age == timedelta(minutes=1)
    assert policy.nodes == {"site-a": {b"\x00\xff", b"\x01"}, "site-b": frozenset()}
    assert policy.tdx.tcb_status == ("SWHardeningNeeded", "UpToDate")
    assert policy.tdx.min_tcb_evaluation == 17
    assert policy.tdx.require_attributes == ()
    assert policy.sgx.mrenclave == (b"\x11" * 32,)
    assert policy.snp.min_tcb == {"microcode": 115, "fmc": 1}
    assert policy.snp.min_committed_tcb == {"snp": 22}
    assert policy.snp.min_launch_tcb == {"snp": 21}
    assert policy.snp.require_policy == ("page_swap_disable",)
    assert policy.snp.require_platform == ("alias_check",)
    assert policy.snp.require_launch_mitigations == (0, 3)
    assert policy.snp.require_current_mitigations == (63,)
    assert policy.snp.products == ("Milan", "Turin")
    assert policy.snp.min_guest_svn == 7
    assert policy.tpm.pcrs == (0, 7, 14)
    assert policy.nvidia.required
    assert policy.coordinator is not None
    assert policy.coordinator.accept == (Tee.SNP,)
    assert policy.coordinator.name == "hospitals"
    assert policy.coordinator.snp.products == ("Genoa",)
    assert policy.coordinator.coordinator is None


def test_the_digest_is_of_the_meaning() -> None:
    one = parse_policy(b'accept = ["tpm", "tdx"]\nname = "x"\n')
    same = parse_policy(
        b'# a comment\nname = "x"\ninsecure_debug = false\naccept = ["tdx","tpm","tdx"]\n'
    )
    assert one.digest == same.digest
    assert len(one.digest) == 32


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"version = 7", b"version = 8"),
        (b'"AB01"', b'"AB02"'),
        (b"insecure_debug = false", b"insecure_debug = true"),
        (b"max_vmpl = 1", b"max_vmpl = 2"),
        (b"site-b = []", b'site-b = ["01"]'),
        (b"2026-01-01T00", b"2026-01-01T01"),
        (b'"Genoa"', b'"Milan"'),
        (b"lifetime_s = 600", b"lifetime_s = 601"),
        (b"required = true", b"required = false"),
    ],
)
def test_any_change_of_meaning_changes_the_digest(old: bytes, new: bytes) -> None:
    assert FULL.count(old) == 1
    before = parse_policy(FULL).digest
    assert parse_policy(FULL.replace(old, new)).digest != before


REFERENCE = '[[reference]]\nclaim = "app"\nvalue = "00"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acept = []", "policy.toml:1: acept: unknown key; did you mean 'accept'?"),
        ("\n\nfrobnicate = 1", "policy.toml:3: frobnicate: unknown key; known here: "),
        ("accept = 'tdx'", "policy.toml:1: accept: must be a list"),
        ("accept = ['TDX']", 'policy.toml:1: accept[0]: must be one of "tdx", '),
        ("accept = [1]", 'policy.toml:1: accept[0]: must be one of "tdx", '),
        ("version = 0", "policy.toml:1: version: must be a whole number from 1"),
        ("version = true", "policy.toml:1: version: must be a whole number"),
        ("version = 1.0", "policy.toml:1: version: must be a whole number"),
        ("name = 3", "policy.toml:1: name: must be text"),
        ('name = "a\\nb"', "policy.toml:1: name: must be text"),
        ("insecure_sample = 'yes'", "policy.toml:1: insecure_sample: must be true or false"),
        ("reference = 1", "policy.toml:1: reference: must be tables"),
        ("[reference]\nclaim = 'a'", "policy.toml:1: reference: must be tables"),
        (REFERENCE + "valeu = 1", "policy.toml:4: reference[0].valeu: unknown key"),
        (
            REFERENCE + "[[reference]]\nclaim = 'b'\nvalu = '00'",
            "policy.toml:6: reference[1].valu: unknown key; did you mean 'value'?",
        ),
        (
            "[[reference]]\nvalue = '00'",
            "policy.toml:1: reference[0]: needs the key 'claim': a claim name",
        ),
        ("[[reference]]\nclaim = 'a'\nvalue = '0g'", "policy.toml:3: reference[0].value: "),
        ("[[reference]]\nclaim = 'a'\nvalue = '0'", "policy.toml:3: reference[0].value: "),
        (
            "[[reference]]\nclaim = 'a'\nvalue = ''",
            "must be an even number, 2 to 128, of hexadecimal digits, not 0",
        ),
        ("[[reference]]\nclaim = 'A B'\nvalue = '00'", "policy.toml:2: reference[0].claim: "),
        (REFERENCE + "tee = 'sev'", 'policy.toml:4: reference[0].tee: must be one of "tdx", '),
        (REFERENCE + "not_after = 2026-01-01", "policy.toml:4: reference[0].not_after: must be"),
        (REFERENCE + "not_after = 2026-01-01T00:00:00", "must be a time with its zone"),
        (REFERENCE + "not_after = 'soon'", "must be a time with its zone"),
        (REFERENCE + "not_before = 0001-01-01T00:00:00+10:00", "is outside of the years"),
        (
            REFERENCE + "not_before = 2026-01-01T00:00:00Z\nnot_after = 2026-01-01T00:00:00Z",
            "policy.toml:5: reference[0].not_after: is not after not_before",
        ),
        ("require = ['app']", "policy.toml:1: require: must be a table"),
        ("[require]\nclaims = [1]", "policy.toml:2: require.claims[0]: must be a claim name"),
        ("[freshness]\nlifetime_s = 1801", "policy.toml:2: freshness.lifetime_s: "),
        ("[freshness]\nmax_age_s = 0", "policy.toml:2: freshness.max_age_s: "),
        ("[freshness]\nmax_age = 1", "freshness.max_age: unknown key; did you mean 'max_age_s'?"),
        ("[freshness.max_age_s]", "policy.toml:1: freshness.max_age_s: must be a whole number"),
        ("freshness = 30", "policy.toml:1: freshness: must be a table, not 30; write [freshness]"),
        ("[nvidia]\nmin_gpus = 1", "nvidia.min_gpus: is asked for only with required = true"),
        ("coordinator = 3", "policy.toml:1: coordinator: must be a table, not 3"),
        ("accept = [0x%s]" % ("f" * 5000), "not a number of more than 60 digits"),
        ("[nodes]\n'a b' = []", 'policy.toml:2: nodes."a b": is not a node name'),
        ("[nodes]\na = 'ff'", "policy.toml:2: nodes.a: must be a list"),
        (
            "[nodes]\na = [\n'00',\n'0',\n]",
            "policy.toml:4: nodes.a[1]: must be an even number, 2 to 128",
        ),
        ("[nodes]\na = ['']", "policy.toml:2: nodes.a[0]: must be an even number, 2 to 128"),
        ("[tdx]\ntcb_status = ['uptodate']", 'not "uptodate"; did you mean "UpToDate"?'),
        ("[tdx]\ntcb_status = ['Revoked']", "policy.toml:2: tdx.tcb_status[0]: must be one of "),
        ("[tdx]\nforbid_attributes = ['sept_ve_disable']", "is both required and forbidden"),
        (
            "[sgx]\nmrenclave = ['00']",
            "policy.toml:2: sgx.mrenclave[0]: must be 64 hexadecimal digits",
        ),
        ("[snp]\nmax_vmpl = 4", "policy.toml:2: snp.max_vmpl: must be a whole number from 0 to 3"),
        ("[snp.min_tcb]\nboot = 1", "policy.toml:2: snp.min_tcb.boot: unknown key"),
        ("[snp.min_tcb]\nsnp = 256", "policy.toml:2: snp.min_tcb.snp: "),
        ("[snp.min_launch_tcb]\nboot = 1", "policy.toml:2: snp.min_launch_tcb.boot: unknown"),
        ("[snp]\nrequire_policy = ['bit 25']", "policy.toml:2: snp.require_policy"),
        ("[snp]\nrequire_launch_mitigations = [64]", "policy.toml:2: snp.require_launch_mi"),
        ("[snp]\nmin_tcb = { boot = 1 }", "policy.toml:2: snp.min_tcb.boot: unknown key"),
        ("[tpm]\npcrs = [24]", "policy.toml:2: tpm.pcrs[0]: must be a whole number from 0 to 23"),
        ("[nvidia]\nrequire = true", "did you mean 'required'?"),
        ("[nvidia]\nmin_gpus = 2", "min_gpus: is asked for only with required = true"),
        ("[nvidia]\nrequired = true\nmin_gpus = 0", "min_gpus: must be a whole number from 1"),
        ("[coordinator]\nacept = []", "policy.toml:2: coordinator.acept: unknown key"),
        ("[coordinator.coordinator]", "policy.toml:1: coordinator.coordinator: unknown key"),
        (
            "[[coordinator.reference]]\nclaim = 'a'\nvalue = 'x'",
            "policy.toml:3: coordinator.reference[0].value: ",
        ),
        ("version =", "is not TOML: "),
        ("version = 1\nversion = 2", "is not TOML: "),
        ("x = " + "[" * 5000, "policy.toml:1: nests deeper than"),
    ],
)
def test_every_mistake_names_its_key_and_line(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text.encode())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_of_a_policy_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = b"acept = []\n[tpm]\npcrs = [1, 24, 25]\n[coordinator]\nversion = 0\n[[reference]]\n"
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert [line.partition(": must")[0] for line in str(error.value).splitlines()] == [
        "policy.toml:1: acept: unknown key; did you mean 'accept'?",
        "policy.toml:3: tpm.pcrs[1]",
        "policy.toml:3: tpm.pcrs[2]",
        "policy.toml:5: coordinator.version",
        "policy.toml:6: reference[0]: needs the key 'claim': a claim name such as \"mrtd\" or "
        '"pcr.14"',
        "policy.toml:6: reference[0]: needs the key 'value': an even number, 2 to 128, of "
        "hexadecimal digits",
    ]


def test_values_that_contradict_each_other_are_refused_outside_of_a_file_too() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(InconsistentValues, match="is not after not_before"):
        ReferenceValue(claim="app", value=b"a", not_before=moment, not_after=moment)
    with pytest.raises(InconsistentValues, match="both required and forbidden"):
        TdxRules(forbid_attributes=("sept_ve_disable",))


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"quote\.bin:1: is not UTF-8 text"):
        parse_policy(b"\x04\xff\x02", "quote.bin")


def test_an_oversized_file_is_refused_unread() -> None:
    with pytest.raises(PolicyError, match="at most"):
        parse_policy(b"#" * (MAX_POLICY_BYTES + 1))


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_no_file_raises_anything_but_a_policy_error(data: bytes) -> None:
    with contextlib.suppress(PolicyError):
        parse_policy(data)


LINES = FULL.splitlines()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(LINES) - 1),
    st.sampled_from([b"= ", b"[", b'"', b"true", b"-1", b"{}", b"[]", b"1e9", b"'x'", b"\0"]),
    st.booleans(),
)
def test_no_edit_of_a_good_file_raises_anything_but_a_policy_error(
    index: int, junk: bytes, replace_value: bool
) -> None:
    key, _, _ = LINES[index].partition(b"=")
    line = key + b"= " + junk if replace_value else LINES[index] + junk
    with contextlib.suppress(PolicyError):
        parse_policy(b"\n".join([*LINES[:index], line, *LINES[index + 1 :]]))
