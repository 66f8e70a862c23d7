"""A federation on this machine that stays, for ``fedlearn local``.

::

    FOLDER/local.json          the sites and their data sets
    FOLDER/coordinator/        server.toml and the coordinator's state
    FOLDER/sites/NAME/         site.toml and the state of one site
    FOLDER/operator/login      the login of its operator
    FOLDER/logs/               what each process writes
    FOLDER/run/                the numbers of the processes

Evidence is a sample, and the sites run any code: this is for trying things out. ``site.toml`` is
written again by each ``up`` from what ``local.json`` has.

The page is docs/how-to/run-it-all-on-one-machine.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from attestation.config import dumps
from attestation.durable import write_durably
from attestation.evidence import Tee
from fedlearn.checks import Level, files
from fedlearn.config import NAME, file_bytes
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.identity.login import OperatorLogin, default_folder
from fedlearn.local.daemons import Daemons
from fedlearn.local.federation import COORDINATOR, Federation, Party

__all__ = ["Part", "ResidentFederation", "default_place", "site_names"]

_RECORD: Final = "local.json"
_VERSION: Final = 1
_MOST_SITES: Final = 26


def default_place() -> Path:
    """Return where the federation is unless another folder is named."""
    data = os.environ.get("XDG_DATA_HOME")
    base = Path(data) if data else Path.home() / ".local" / "share"
    return base / "fedlearn" / "local"


def site_names(text: str) -> tuple[str, ...]:
    """Return the sites that ``--sites`` names: a number of them, or their names with commas.

    >>> site_names("2")
    ('site-a', 'site-b')
    >>> site_names("north,south")
    ('north', 'south')

    :raises ConfigError: when it is neither.
    """
    if text.isdecimal():
        if not 1 <= int(text) <= _MOST_SITES:
            raise ConfigError(f"must be 1 to {_MOST_SITES}, not {text}", key="--sites")
        return tuple(f"site-{letter}" for letter in string.ascii_lowercase[: int(text)])
    names = tuple(text.split(","))
    wrong = [name for name in names if not NAME.fullmatch(name) or name == COORDINATOR]
    if wrong or len(set(names)) < len(names) or len(names) > _MOST_SITES:
        raise ConfigError(
            f"{text[:80]!r} is neither a number of sites nor up to {_MOST_SITES} different names",
            key="--sites",
            hint="write 3, or north,south: 1 to 63 of a-z, 0-9 and '-' each",
        )
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process: the coordinator or the agent of a site.

    ``pid`` is 0 while it does not run. ``connected``: whether a site's agent is connected.
    """

    name: str
    pid: int
    log: Path
    connected: bool = False


@dataclass(slots=True)
class _Record:
    """What the folder has. ``initialized``: its coordinator was."""

    sites: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    initialized: bool = False

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            found: dict[str, Any] = json.loads(file_bytes(path))
            if found["version"] != _VERSION:
                raise ValueError
            return cls(
                sites=site_names(",".join(found["sites"])),
                data={str(name): str(place) for name, place in found["data"].items()},
                initialized=found["initialized"] is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(
                "is not a file that `fedlearn local up` wrote",
                where=str(path),
                hint="name another folder with --folder",
            ) from None

    def save(self, path: Path) -> None:
        document = {
            "version": _VERSION,
            "sites": list(self.sites),
            "data": self.data,
            "initialized": self.initialized,
        }
        write_durably(path, json.dumps(document, indent=2).encode() + b"\n")


class ResidentFederation:
    """The federation in one folder. Its processes stay when this object is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._daemons = Daemons(self.folder)
        self._federation = Federation(
            self.folder, self._daemons, tee=Tee.SAMPLE, insecure_any_bundle=True
        )

    @property
    def login(self) -> Path:
        """The operator's login."""
        return self._federation.login

    def up(self, sites: Sequence[str], data: Mapping[str, Path]) -> tuple[str, ...]:
        """Start what does not run, and make what is missing; return what was started.

        :param sites: empty for those that the folder has.
        :param data: data sets by name, added to those that there are. A folder that has a folder
            of a site's name is parted among the sites; another one is that of each.
        :raises ConfigError: when it is up already, has other sites, is another user's or was made
            by half, or a port is taken.
        :raises LaunchError: when a process does not start, with its last output.
        """
        with self._locked(create=True):
            record = self._record() if self.made else _Record(sites=tuple(sites))
            if sites and set(sites) != set(record.sites):
                raise ConfigError(
                    f"has the sites {', '.join(record.sites)}",
                    where=str(self.folder),
                    key="--sites",
                    hint="leave the option out; `fedlearn local add-site NAME` adds one",
                )
            added = self._added(record, data)
            before = {part.name for part in self._parts(record) if part.pid}
            if before == {COORDINATOR, *record.sites} and not added:
                raise ConfigError(
                    "is up already",
                    where=str(self.folder),
                    hint="`fedlearn local status` shows it; `fedlearn local down` ends it",
                )
            record.data |= added
            if COORDINATOR not in before:
                self._start_coordinator(record)
            else:
                self._reach(record)
            for name in record.sites:
                if name in before and added:
                    self._daemons.stop(name)
                    before.discard(name)
                self._start_site(record, name)
            self._federation.await_connected(record.sites)
            record.save(self.folder / _RECORD)
            return tuple(n for n in (COORDINATOR, *record.sites) if n not in before)

    def add_site(self, name: str) -> None:
        """Invite a site, enroll it and start its agent.

        :raises ConfigError: when there is a site of this name, or the coordinator does not run.
        """
        site_names(name)
        with self._locked():
            record = self._record()
            if name in record.sites:
                raise ConfigError(f"there is a site {name} already", where=str(self.folder))
            if not self._parts(record)[0].pid:
                raise ConfigError(
                    "the coordinator does not run",
                    where=str(self.folder),
                    hint="start it: `fedlearn local up`",
                )
            record.sites = (*record.sites, name)
            record.save(self.folder / _RECORD)
            self._reach(record)
            self._start_site(record, name)
            self._federation.await_connected([name])

    def status(self) -> tuple[Part, ...]:
        """Return the coordinator and the sites.

        :raises ConfigError: when there is no federation in the folder.
        """
        with self._locked():
            record = self._record()
            parts = self._parts(record)
            if not parts[0].pid:
                return parts
            try:
                self._reach(record)
                sites = self._federation.operator.list_sites()
            except FedlearnError:
                sites = ()
            finally:
                self._federation.close()
            connected = {site.name for site in sites if site.connected}
            return tuple(
                Part(name=p.name, pid=p.pid, log=p.log, connected=p.name in connected)
                for p in parts
            )

    def down(self, *, purge: bool = False) -> tuple[str, ...]:
        """End all processes; with ``purge`` delete the folder. Return what was ended.

        A login that is installed for this federation is deleted with it.

        :raises ConfigError: when there is no federation in the folder.
        """
        with self._locked():
            record = self._record()
            names = (*reversed(record.sites), COORDINATOR)
            ended = tuple(name for name in names if self._daemons.stop(name))
            if purge:
                if self._installed():
                    shutil.rmtree(default_folder())
                shutil.rmtree(self.folder)
            return ended

    def install_login(self) -> Path:
        """Make its login the one that ``fedlearn`` uses without ``--operator``; return where.

        :raises ConfigError: when another login is there.
        """
        target = default_folder()
        if not self._installed():
            self.check_login()
            OperatorLogin.load(self.login).save(target)
        return target

    def check_login(self) -> None:
        """Check that :meth:`install_login` would replace no other login.

        :raises ConfigError: when it would.
        """
        if default_folder().exists() and not self._installed():
            raise ConfigError(
                "another login is installed there",
                where=str(default_folder()),
                key="--install-login",
                hint="leave the flag out, and set FEDLEARN_OPERATOR as the command prints it",
            )

    def _installed(self) -> bool:
        own, other = (place / "operator.pem" for place in (self.login, default_folder()))
        return own.is_file() and other.is_file() and own.read_bytes() == other.read_bytes()

    @property
    def data(self) -> tuple[str, ...]:
        """The names of the data sets that its sites have."""
        return tuple(self._record().data)

    @property
    def made(self) -> bool:
        """Whether there is a federation in the folder."""
        return (self.folder / _RECORD).exists()

    @contextlib.contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[None]:
        """Keep other commands away from the folder, which has to be this user's."""
        if not self.folder.exists():
            if not create:
                raise self._none()
            self.folder.mkdir(parents=True, mode=0o700)
        if self.folder.stat().st_uid != os.geteuid():
            raise ConfigError(
                "is another user's", where=str(self.folder), hint="name another with --folder"
            )
        if create and not self.made and (found := next(self.folder.iterdir(), None)) is not None:
            raise ConfigError(
                f"has {found.name}, and no federation that `fedlearn local up` made",
                where=str(self.folder),
                hint="name a new folder with --folder",
            )
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "another `fedlearn local` command works on it",
                    where=str(self.folder),
                    hint="wait until it has ended",
                ) from None
            yield
        finally:
            self._federation.close()
            os.close(descriptor)

    def _none(self) -> ConfigError:
        return ConfigError(
            "has no federation",
            where=str(self.folder),
            hint="make one: `fedlearn local up --sites 3`, or name its folder with --folder",
        )

    def _record(self) -> _Record:
        if not self.made:
            raise self._none()
        return _Record.load(self.folder / _RECORD)

    def _parts(self, record: _Record) -> tuple[Part, ...]:
        parts = []
        for name in (COORDINATOR, *record.sites):
            found = self._daemons.find(name)
            pid = 0 if found is None or found.ended else found.pid
            parts.append(Part(name=name, pid=pid, log=self.folder / "logs" / f"{name}.log"))
        return tuple(parts)

    def _added(self, record: _Record, data: Mapping[str, Path]) -> dict[str, str]:
        """Return the data sets that the record does not have."""
        added = {}
        for name, place in data.items():
            where = str(place.absolute())
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name[:80]!r} is no name of a data set", key="--data")
            if not place.exists():
                raise ConfigError("does not exist", where=str(place), key=f"--data {name}")
            if record.data.get(name) not in (None, where):
                raise ConfigError(
                    f"the data set {name} is {record.data[name]}", key="--data", where=str(place)
                )
            if name not in record.data:
                added[name] = where
        return added

    def _start_coordinator(self, record: _Record) -> None:
        federation = self._federation
        path = self.folder / _RECORD
        if record.initialized:
            self._machines(record)
            self._check_ports()
            federation.resume()
            return
        if self.made:
            raise ConfigError(
                "was made by half, and its coordinator cannot be started",
                where=str(self.folder),
                hint="delete it: `fedlearn local down --purge`, and begin again",
            )
        record.save(path)
        try:
            self._machines(record)
            federation.start()
        except BaseException:
            self._daemons.stop(COORDINATOR)
            shutil.rmtree(self.folder)
            raise
        record.initialized = True
        record.save(path)

    def _reach(self, record: _Record) -> None:
        """Connect to the coordinator, which runs."""
        self._machines(record)
        self._federation.resume()

    def _machines(self, record: _Record) -> None:
        self._federation.make_machines(record.sites)

    def _start_site(self, record: _Record, name: str) -> None:
        federation = self._federation
        data = {key: _of_site(Path(place), name) for key, place in record.data.items()}
        if not (federation.identity_folder(name) / "site.json").exists():
            federation.join(name, data=data, bundle=b"", visible_updates=True, app_logs="sealed")
            return
        folder = self.folder / "sites" / name
        machine = federation.machines[name]
        party = Party(
            name=name,
            folder=folder,
            machine=machine,
            data=data,
            visible_updates=True,
            app_logs="sealed",
        )
        write_durably(party.config, dumps(federation.site_table(party, b"")).encode())
        federation.start_agent(party)

    def _check_ports(self) -> None:
        from server.config import ServerConfig

        listen = ServerConfig.load(self._federation.server_config).listen
        for name in ("gate", "control", "fleet"):
            found = files.port(getattr(listen, name), name=name)
            if found.level is Level.FAIL:
                raise ConfigError(found.found, where=str(self.folder), hint=found.mend)


def _of_site(place: Path, site: str) -> Path:
    """Return the part of a data set that a site has: the folder of its name, or all of it."""
    own = place / site
    return own if own.is_dir() else place
