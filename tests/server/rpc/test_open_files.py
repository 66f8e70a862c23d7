"""A coordinator that may open too few files for its sites does not start, and states what to do."""

from __future__ import annotations

import resource

import pytest

from fedlearn.errors import ConfigError
from server.rpc.open_files import caps_of, check_open_files, raise_open_files


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The limits of open files, soft and hard, as the process finds them and sets them."""
    found = {"files": (1024, 20_000)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: found["files"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.update(files=limits))
    return found


def test_the_limit_is_raised_as_far_as_the_machine_allows(
    allowed: dict[str, tuple[int, int]],
) -> None:
    raise_open_files(1000)
    assert allowed["files"] == (20_000, 20_000)
    check_open_files(4976)


def test_more_sites_than_files_are_refused_by_the_key_with_the_number_that_is_needed(
    allowed: dict[str, tuple[int, int]],
) -> None:
    raise_open_files(5000)
    with pytest.raises(ConfigError) as caught:
        check_open_files(5000)
    error = caught.value
    assert "limits.sites" in str(error)
    assert "5000 sites need 20096 open files, and this process may open 20000" in str(error)
    assert "LimitNOFILE=20096" in error.hint
    assert "lower limits.sites to 4976" in error.hint


def test_many_sites_raise_the_limit_beyond_its_default(
    allowed: dict[str, tuple[int, int]],
) -> None:
    allowed["files"] = (1024, resource.RLIM_INFINITY)
    raise_open_files(100_000)
    check_open_files(100_000)
    assert allowed["files"] == (400_096, resource.RLIM_INFINITY)
    allowed["files"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    raise_open_files(100_000)
    check_open_files(100_000)
    assert allowed["files"] == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("files", "unknown", "of_one"), [(20_000, 1024, 256), (1600, 100, 25), (100, 16, 4)]
)
def test_few_files_leave_fewer_connections_to_strangers(
    allowed: dict[str, tuple[int, int]], files: int, unknown: int, of_one: int
) -> None:
    allowed["files"] = (files, files)
    caps = caps_of(connections=1024, per_peer=256, per_identity=8)
    assert (caps.unknown, caps.unknown_per_peer, caps.per_identity) == (unknown, of_one, 8)
