"""The coordinator's state directory: initialized once, opened at every start.

::

    STATE/keys/              the key service: everything secret, sealed under one root key
    STATE/ca.pem             the root certificate (public)
    STATE/ledger.sqlite      every decision;  STATE/ledger.pub.pem verifies it
    STATE/store/             sealed models, and the seal that binds them to the ledger
    STATE/jobs.sqlite        job specifications, policies and events;  STATE/bundles/ their code
    STATE/app-logs.sqlite    what apps wrote at sites, sealed to the owners of their jobs
    STATE/operator.toml      the answer to the first operator's request (public), or
    STATE/operator/          insecure: the first operator's login with its key, made here
    STATE/attester/          public state of the coordinator's own attester

The private keys (CA, ledger, orders, results) exist in memory and sealed in ``keys/`` only.
The key of the TLS listeners and the HPKE key are made again at every start and never written.

The page is docs/reference/state.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from attestation.durable import write_durably
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError
from fedlearn.identity.keyfile import read_private_key
from fedlearn.identity.login import LoginGrant, OperatorLogin, csr_der, new_request
from server.config import Keys, ServerConfig
from server.identity.operators import OperatorRegistry, requested_name
from server.identity.peer_certificates import csr_key
from server.identity.pki import CertificateAuthority
from server.jobs.records.app_log_store import AppLogStore
from server.jobs.records.history import JobHistory
from server.jobs.records.job_store import JobStore
from server.keys.key_protectors import (
    InsecurePlainKeyFile,
    Passphrase,
    Protector,
    RecoveryKey,
    TpmPolicy,
)
from server.keys.root_key import ROOT_FILE
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger
from server.store.catalogue import MonotonicCounter
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore
from server.store.state_binding import (
    CA_FILE,
    CA_KEY,
    LEDGER_KEY,
    STORE_FOLDER,
    authority,
    open_bound,
    secret_key,
)

__all__ = [
    "GRANT_FILE",
    "KEYS_FOLDER",
    "OPERATOR_FOLDER",
    "StateDirectory",
    "admit_operator",
    "counter_of",
    "initialize",
    "opened_keys",
    "protector_names",
    "protectors_of",
]

KEYS_FOLDER: Final = "keys"
OPERATOR_FOLDER: Final = "operator"
GRANT_FILE: Final = "operator.toml"
_ORDER_KEY: Final = "order-key"
_RESULT_KEY: Final = "result-key"
_FIRST_OPERATOR: Final = "first"


def protectors_of(keys: Keys, state: Path) -> list[Protector]:
    """Return the protectors that the configuration names.

    :raises ConfigError: when a key file or the passphrase is unusable.
    """
    made: list[Protector] = []
    for kind in keys.protect:
        if kind == "tpm-policy":
            from attestation.tpm.seal import TpmSeal

            made.append(TpmPolicy(TpmSeal(keys.tcti, state / "tpm-seal", keys.pcrs)))
        elif kind == "recovery-key" and keys.recovery_key is not None:
            made.append(_recovery_key(keys.recovery_key))
        elif kind == "passphrase" and keys.passphrase_file is not None:
            data = file_bytes(keys.passphrase_file, limit=4096, what="the passphrase file")
            made.append(Passphrase(data.decode(errors="replace").rstrip("\r\n")))
        elif kind == "insecure-plain-key-file":
            made.append(InsecurePlainKeyFile(state / KEYS_FOLDER))
    return made


def protector_names(keys: Keys) -> tuple[str, ...]:
    """Name what may open the root key: kinds, and of a recovery key its public half.

    :raises ConfigError: when the file of the recovery key is unusable.
    """
    names = []
    for kind in keys.protect:
        public = ""
        if kind == RecoveryKey.kind and keys.recovery_key is not None:
            public = f":{_recovery_key(keys.recovery_key).public.hex()}"
        names.append(kind + public)
    return tuple(sorted(names))


def initialize(
    config: ServerConfig, *, now: datetime, control_address: str, operator_csr: Path | None
) -> Path:
    """Make keys, CA, ledger and the first operator in the state directory.

    :param operator_csr: the operator's certification request (PEM). Its answer is written to
        ``operator.toml``, which is public. ``None`` is insecure: the operator's key is made
        here and written, in clear, beside its certificate.
    :returns: the answer's file, or the login's folder.
    :raises ConfigError: when a coordinator was initialized there before, or the request is
        none of an operator.
    :raises TransportError: when the request is not signed by its own key on P-256.
    """
    state = config.state
    if (state / KEYS_FOLDER / ROOT_FILE).exists():
        raise ConfigError(
            "a coordinator was initialized here before",
            where=str(state),
            hint="start it with `fedlearn-server run`, or name another `state` in server.toml",
        )
    # All that can be wrong with the request is found before anything is made.
    name, request, key = _first_request(operator_csr, config.trust_domain)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = KeyService.create(
        state / KEYS_FOLDER,
        protectors_of(config.keys, state),
        allow_insecure_key_file=config.keys.insecure,
    )
    ca = CertificateAuthority.create(config.trust_domain, now)
    keys.keep(CA_KEY, ca.private_bytes())
    write_durably(state / CA_FILE, ca.certificate_pem)
    for secret in (LEDGER_KEY, _ORDER_KEY, _RESULT_KEY):
        keys.keep(secret, _der(ec.generate_private_key(ec.SECP256R1())))
    head = HeadFile(state / STORE_FOLDER / HEAD_FILE, keys.root)
    signer = secret_key(keys, LEDGER_KEY)
    with Ledger.open(state / LEDGER_FILE, signer, seal=head.seal_head) as ledger:
        ledger.append("policy", {"change": "established", "trust_domain": config.trust_domain})
        operators = OperatorRegistry(ca=ca, entries=(), record=ledger.append, clock=lambda: now)
        _, issued = operators.add(name, request)
        # The last step: a state directory without this mark was not initialized.
        counter = counter_of(config.keys)
        with ModelStore.open(state / STORE_FOLDER, keys, counter=counter, head=head) as store:
            store.initialize(protectors=protector_names(config.keys))
    keys.close()
    if key is None:
        grant = LoginGrant(address=control_address, certificates=issued.chain_pem.decode())
        write_durably(state / GRANT_FILE, grant.to_toml().encode())
        return state / GRANT_FILE
    OperatorLogin(
        address=control_address, ca=ca.certificate_pem, chain=issued.chain_pem, key=key
    ).save(state / OPERATOR_FOLDER)
    return state / OPERATOR_FOLDER


def admit_operator(
    directory: StateDirectory, name: str, csr: Path, *, now: datetime, control: str
) -> LoginGrant:
    """Let an operator in where no other operator can: the coordinator must not be running.

    :param csr: the operator's certification request (PEM).
    :raises ConfigError: when the name is taken, or the request is none for it.
    :raises TransportError: when the request is not signed by its own key on P-256.
    """
    operators = OperatorRegistry(
        ca=directory.ca,
        entries=(entry.body for entry in directory.ledger.entries(kind="operator")),
        record=directory.ledger.append,
        clock=lambda: now,
    )
    _, issued = operators.add(name, csr_der(csr))
    return LoginGrant(address=control, certificates=issued.chain_pem.decode())


@contextmanager
def opened_keys(config: ServerConfig) -> Iterator[KeyService]:
    """Recover the root key of a coordinator and open its key service.

    :raises ConfigError: when no coordinator was initialized there.
    :raises StoreError: when the keys do not open.
    """
    state = config.state
    if not (state / KEYS_FOLDER / ROOT_FILE).exists():
        raise ConfigError(
            "no coordinator was initialized here",
            where=str(state),
            hint="make one with `fedlearn-server init`",
        )
    keys = KeyService.open(
        state / KEYS_FOLDER,
        protectors_of(config.keys, state),
        allow_insecure_key_file=config.keys.insecure,
        expected_id=config.keys.key_id or None,
    )
    try:
        yield keys
    finally:
        keys.close()


@dataclass(slots=True)
class StateDirectory:
    """An open state directory. Close it, or use it as a context manager.

    ``order_key`` signs assignments, ``result_key`` attestation results.
    """

    config: ServerConfig
    keys: KeyService
    ca: CertificateAuthority
    ledger: Ledger
    store: ModelStore
    order_key: ec.EllipticCurvePrivateKey
    result_key: ec.EllipticCurvePrivateKey
    _open: ExitStack = field(repr=False)

    @classmethod
    def open(cls, config: ServerConfig) -> Self:
        """Recover the root key and open everything under it.

        :raises ConfigError: when no coordinator was initialized there.
        :raises StoreError: when keys or store do not open, or the store is older than the
            ledger or the TPM's counter shows.
        :raises LedgerError: when the ledger does not open, is older than the store shows, or is
            another one.
        """
        state = config.state
        with ExitStack() as stack:
            keys = stack.enter_context(opened_keys(config))
            ledger, store = stack.enter_context(
                open_bound(state, keys, counter=counter_of(config.keys))
            )
            keys.record_with(ledger.append)
            ca = authority(state, keys)
            if ca.trust_domain != config.trust_domain:
                raise ConfigError(
                    f"the CA in {state} is of {ca.trust_domain!r}, not {config.trust_domain!r}",
                    key="trust_domain",
                    hint="a trust domain is chosen once; correct server.toml",
                )
            return cls(
                config=config,
                keys=keys,
                ca=ca,
                ledger=ledger,
                store=store,
                order_key=secret_key(keys, _ORDER_KEY),
                result_key=secret_key(keys, _RESULT_KEY),
                _open=stack.pop_all(),
            )

    def close(self) -> None:
        """Close everything and forget the keys."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def job_store(self) -> JobStore:
        """Open the file of jobs; to be closed before this.

        :raises StoreError: when it cannot be opened, is damaged or is not a file of jobs.
        """
        return JobStore(
            self.config.state, key=self.keys.root.derive("jobs"), history=JobHistory(self.ledger)
        )

    def app_log_store(self) -> AppLogStore:
        """Open the file of the logs of apps; to be closed before this.

        :raises StoreError: when it cannot be opened, is damaged or is not such a file.
        """
        return AppLogStore(self.config.state, key=self.keys.root.derive("app-logs"))

    def server_identity(
        self, *, dns_names: Sequence[str], ips: Sequence[str], now: datetime
    ) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """Make a fresh key for the TLS listeners; return it and its chain (PEM)."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self.ca.issue_server(_csr(key), dns_names=dns_names, ips=ips, now=now)
        return key, issued.chain_pem


def _first_request(csr: Path | None, trust_domain: str) -> tuple[str, bytes, bytes | None]:
    """Return the first operator's name and request (DER), and its key if it was made here."""
    if csr is None:
        key, pem = new_request(_FIRST_OPERATOR)
        made = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
        return _FIRST_OPERATOR, made, key
    request = csr_der(csr)
    csr_key(request)
    return requested_name(request, trust_domain=trust_domain), request, None


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _recovery_key(path: Path) -> RecoveryKey:
    """Read either half: the public one protects, the private one also recovers."""
    data = file_bytes(path, limit=64 * 1024, what="the recovery key")
    if b"PRIVATE KEY" in data:
        return RecoveryKey.of(read_private_key(path, what="the recovery key"))
    try:
        public = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("not a key in PEM", where=str(path)) from None
    if not isinstance(public, X25519PublicKey):
        raise ConfigError("a recovery key is an X25519 key", where=str(path))
    return RecoveryKey(public.public_bytes_raw())


def counter_of(keys: Keys) -> MonotonicCounter | None:
    """Return the TPM's counter where the TPM keeps the root key: it finds an older disk."""
    if "tpm-policy" not in keys.protect:
        return None
    from attestation.tpm.seal import TpmCounter

    return TpmCounter(keys.tcti)
