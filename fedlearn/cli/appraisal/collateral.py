"""``fedlearn collateral``: the documents for verification, in a folder, also for offline use.

The page is docs/how-to/collateral.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx

from attestation.documents.formats import MAX_INPUT_BYTES, to_evidence
from attestation.endorsements.collateral import (
    BUNDLE_NAME,
    Item,
    bundle_json,
    describe,
    load_folder,
    read_bundle,
    read_files,
    read_sources,
)
from attestation.endorsements.collateral_answers import Assembly, assemble_answers
from attestation.endorsements.collateral_sources import (
    AMD_KDS,
    INTEL_PCS,
    INTEL_ROOT_CRL,
    Answer,
    IntelPlatform,
    amd_chip,
    assemble_intel,
    intel_platform,
)
from attestation.endorsements.nvidia_sources import NVIDIA_OCSP, NVIDIA_RIM, rim_in_answer
from attestation.endorsements.offline import MAX_COLLATERAL_BYTES, Input
from attestation.errors import EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.snp import PRODUCTS
from fedlearn.cli.appraisal.collateral_nvidia import SOURCE, fetch_nvidia, nvidia_addresses
from fedlearn.cli.appraisal.inputs import moment, write_new
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError, TransportError
from fedlearn.terminal.console import Commands, json_option, line, print_json, printable

__all__ = ["group"]

_PATH = click.Path(path_type=Path)
_TIMEOUT_S = 30.0
_MAX_KEY_BYTES = 4096
_ITEMS = {
    "tcb_info": "TCB info",
    "qe_identity": "QE identity",
    "pck_crl": "revocation list of the PCK CA",
    "root_ca_crl": "revocation list of Intel's root CA",
    "vcek": "VCEK of the chip",
    "chain": "chain of AMD's certificates",
    "crl": "revocation list of AMD's root",
}


@click.group(cls=Commands)
def group() -> None:
    """Collateral: vendors' certificates, TCB levels and revocation lists, in one folder."""


_folder_option = click.option(
    "--directory", "folder", type=_PATH, required=True, metavar="DIR", help="The folder."
)
_at_option = click.option(
    "--at", default=None, metavar="RFC3339", help="Check validity at this time instead of now."
)


@group.command()
@_folder_option
@json_option
def show(folder: Path, as_json: bool) -> None:
    """List the content of a folder, and until when each item is valid."""
    items = read_bundle(_existing(folder))
    if as_json:
        print_json({"items": [_to_json(item) for item in items]})
        return
    for item in items:
        until = item.not_after.isoformat(timespec="seconds")
        line(f"{item.kind:<17} until {until}  {printable(item.name)}  ({printable(item.path)})")


@group.command()
@_folder_option
@_at_option
@click.option(
    "--warn-days", type=click.IntRange(0, 3650), default=7, show_default=True, metavar="N"
)
@json_option
def check(folder: Path, at: str | None, warn_days: int, as_json: bool) -> None:
    """Check that nothing is missing, altered or expired; warn of what expires soon."""
    loaded = load_folder(_existing(folder), now=moment(at), warn_before=timedelta(days=warn_days))
    for warning in loaded.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    count = len(loaded.collateral) + len(loaded.endorsements)
    if as_json:
        print_json({"items": count, "warnings": list(loaded.warnings)})
        return
    line(f"{count} items, all present and valid")


@group.command()
@_folder_option
@click.option(
    "--evidence",
    "evidence_files",
    type=_PATH,
    multiple=True,
    metavar="FILE",
    help="Fetch what this quote or report needs; repeatable.",
)
@click.option("--fmspc", default=None, metavar="HEX", help="Intel: fetch for this FMSPC.")
@click.option(
    "--ca", type=click.Choice(("processor", "platform")), default="platform", show_default=True
)
@click.option("--tee", type=click.Choice(("tdx", "sgx")), default="tdx", show_default=True)
@click.option(
    "--product", type=click.Choice(PRODUCTS), default=None, help="AMD: where a report is silent."
)
@click.option("--intel-url", default=INTEL_PCS, show_default=True, metavar="URL")
@click.option("--intel-crl-url", default=INTEL_ROOT_CRL, show_default=True, metavar="URL")
@click.option("--amd-url", default=AMD_KDS, show_default=True, metavar="URL")
@click.option("--nvidia-rim-url", default=NVIDIA_RIM, show_default=True, metavar="URL")
@click.option("--nvidia-ocsp-url", default=NVIDIA_OCSP, show_default=True, metavar="URL")
@click.option(
    "--nvidia-key-file",
    type=_PATH,
    default=None,
    metavar="FILE",
    help="A key for NVIDIA's RIM service, where it asks for one.",
)
@json_option
def fetch(
    folder: Path,
    evidence_files: tuple[Path, ...],
    fmspc: str | None,
    ca: str,
    tee: str,
    product: str | None,
    intel_url: str,
    intel_crl_url: str,
    amd_url: str,
    nvidia_rim_url: str,
    nvidia_ocsp_url: str,
    nvidia_key_file: Path | None,
    as_json: bool,
) -> None:
    """Fetch collateral from Intel, AMD and NVIDIA into a folder, and list it there.

    Without --evidence and --fmspc, everything that the folder lists is fetched again, which
    renews what has expired and adds what is missing.
    """
    wanted: dict[str, dict[str, str]] = {}
    for path in evidence_files:
        evidence = _evidence(path)
        found = _wanted(path, evidence, product, intel_url, intel_crl_url, amd_url)
        if addresses := _nvidia(path, evidence, nvidia_rim_url, nvidia_ocsp_url):
            found[SOURCE] = wanted.get(SOURCE, {}) | addresses
        wanted |= found
        if not found:
            raise ConfigError(
                f"is {evidence.tee.value} evidence, for which no vendor publishes collateral",
                where=str(path),
            )
    if fmspc is not None:
        platform = _platform(fmspc, ca, tee)
        wanted[_intel_name(platform)] = platform.addresses(intel_url, intel_crl_url)
    known = read_sources(folder) if (folder / BUNDLE_NAME).is_file() else {}
    wanted = wanted or known
    if not wanted:
        raise ConfigError(
            "nothing to fetch", hint="name --evidence FILE, or --fmspc HEX for an Intel platform"
        )
    key = _service_key(nvidia_key_file) if nvidia_key_file else None
    with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
        fetched = [
            item
            for name, addresses in wanted.items()
            if name != SOURCE
            for item in _items(
                name, {part: _get(client, url, part) for part, url in addresses.items()}
            )
        ]
        if SOURCE in wanted:

            def ask(url: str, part: str, body: bytes | None) -> bytes:
                return _get(client, url, part, body, key if body is None else None).body

            items, addresses = fetch_nvidia(ask, wanted[SOURCE], nvidia_ocsp_url)
            fetched += items
            wanted[SOURCE] = known.get(SOURCE, {}) | addresses
    _store(folder, fetched, known | wanted)
    if as_json:
        print_json({"items": [_to_json(item) for item in fetched]})
        return
    for item in fetched:
        until = item.not_after.isoformat(timespec="seconds")
        line(f"fetched {printable(item.name)}, valid until {until}")


@group.command()
@_folder_option
@click.argument("paths", type=_PATH, nargs=-1, required=True, metavar="FILE_OR_DIR...")
@_at_option
@json_option
def add(folder: Path, paths: tuple[Path, ...], at: str | None, as_json: bool) -> None:
    """Add files that were fetched by other means: answers of vendors' services, certificates,
    lists.

    The answers to TCB info, QE identity and revocation lists are put together, with the issuer
    chains of their header fields (as `curl -i` or `curl -D` keeps them), for each FMSPC.
    """
    files = list(read_files(paths))
    answers = assemble_answers(files, now=moment(at))
    for text in answers.missing:
        click.echo(f"warning: {printable(text)}", err=True)
    names = _document_names(answers)
    added = [
        describe(document.data, path=f"{name}.json")
        for name, document in zip(names, answers.documents, strict=True)
    ]
    added += _others([file for file in files if file.name not in answers.used], paths)
    if not added:
        raise ConfigError("contain no collateral", where=", ".join(map(str, paths)))
    if twice := {
        item.path for item in added if [other.path for other in added].count(item.path) > 1
    }:
        raise ConfigError("several files of this name", where=min(twice), hint="rename one")
    known = read_sources(folder) if (folder / BUNDLE_NAME).is_file() else {}
    made = zip(names, answers.documents, strict=True)
    _store(folder, added, known | {name: item.platform.addresses() for name, item in made})
    if as_json:
        print_json({"items": [_to_json(item) for item in added], "warnings": list(answers.missing)})
        return
    for item in added:
        until = item.not_after.isoformat(timespec="seconds")
        line(f"added {printable(item.name)}, valid until {until}")


def _document_names(answers: Assembly) -> list[str]:
    """Name the documents as `fetch` does, and by their CA if there are several."""
    platforms = [item.platform for item in answers.documents]
    if len({platform.ca for platform in platforms}) == 1:
        return [_intel_name(platform) for platform in platforms]
    return [f"{_intel_name(platform)}-{platform.ca}" for platform in platforms]


def _others(files: list[Input], named: tuple[Path, ...]) -> Iterator[Item]:
    """Describe the files that are collateral; other files in a folder are skipped.

    :raises ConfigError: when a named file is not collateral.
    """
    for file in files:
        try:
            yield describe(_unpacked(file.data), path=Path(file.name).name)
        except EvidenceError as error:
            if Path(file.name) in named:
                raise ConfigError(
                    f"is not an answer of a vendor's service, a certificate or a list ({error})",
                    where=file.name,
                ) from None


def _unpacked(data: bytes) -> bytes:
    """Return the RIM in an answer of NVIDIA's RIM service; other data unchanged."""
    try:
        return rim_in_answer(data)
    except EvidenceError:
        return data


def _existing(folder: Path) -> Path:
    if not (folder / BUNDLE_NAME).is_file():
        raise ConfigError(
            f"has no {BUNDLE_NAME}",
            where=str(folder),
            hint=f"fedlearn collateral fetch --directory {folder} --evidence FILE",
        )
    return folder


def _evidence(path: Path) -> Evidence:
    try:
        return to_evidence(file_bytes(path, limit=MAX_INPUT_BYTES))
    except EvidenceError as error:
        raise ConfigError(str(error), where=str(path), hint=error.hint) from None


def _wanted(
    path: Path,
    evidence: Evidence,
    product: str | None,
    intel_url: str,
    intel_crl_url: str,
    amd_url: str,
) -> dict[str, dict[str, str]]:
    """Return the documents of Intel or AMD for evidence, by the name of the source."""
    try:
        if evidence.tee in (Tee.TDX, Tee.SGX):
            platform = intel_platform(evidence.quote)
            return {_intel_name(platform): platform.addresses(intel_url, intel_crl_url)}
        if evidence.tee is Tee.SNP:
            chip = amd_chip(evidence.quote, product)
            name = f"amd-{chip.product}-{chip.chip_id.hex()[:16]}"
            return {name: chip.addresses(amd_url)}
    except EvidenceError as error:
        raise ConfigError(str(error), where=str(path), hint=error.hint) from None
    return {}


def _nvidia(path: Path, evidence: Evidence, rim_url: str, ocsp_url: str) -> dict[str, str]:
    try:
        return nvidia_addresses(evidence, rim_url, ocsp_url)
    except EvidenceError as error:
        raise ConfigError(str(error), where=str(path), hint=error.hint) from None


def _service_key(path: Path) -> str:
    try:
        key = file_bytes(path, limit=_MAX_KEY_BYTES).decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key.isprintable() or " " in key or not key:
        raise ConfigError("is not one line of printable characters", where=str(path))
    return key


def _platform(fmspc: str, ca: str, tee: str) -> IntelPlatform:
    try:
        return IntelPlatform(fmspc=fmspc, ca=ca, tee=tee)
    except ValueError as error:
        raise ConfigError(str(error), where="--fmspc") from None


def _intel_name(platform: IntelPlatform) -> str:
    return f"intel-{platform.tee}-{platform.fmspc.lower()}"


def _get(
    client: httpx.Client, url: str, item: str, body: bytes | None = None, key: str | None = None
) -> Answer:
    """Request one address, by POST if there is a body; the answer is bounded while it is read.

    :raises TransportError: naming the host, the request, and what is wrong.
    """
    what = f"{_ITEMS.get(item, item)}: {urlsplit(url).netloc or url}"
    hint = (
        "fetch where a network exists, and carry the folder to where none does; or keep the "
        f"answer of {url} in a file, and give it to `fedlearn collateral add`"
    )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if body is not None:
        headers["Content-Type"] = "application/ocsp-request"
    try:
        with client.stream(
            "GET" if body is None else "POST", url, content=body, headers=headers
        ) as response:
            if response.status_code != httpx.codes.OK:
                raise TransportError(f"{what} answered {response.status_code}", hint=hint)
            read = bytearray()
            for chunk in response.iter_bytes():
                read += chunk
                if len(read) > MAX_COLLATERAL_BYTES:
                    raise TransportError(f"{what} sends more than {MAX_COLLATERAL_BYTES} bytes")
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(headers=found, body=bytes(read))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise TransportError(f"{what} cannot be reached: {reason}", hint=hint) from None


def _items(name: str, answers: Mapping[str, Answer]) -> Iterator[Item]:
    if "tcb_info" in answers:
        files = {f"{name}.json": assemble_intel(answers)}
    else:
        chain = name.rsplit("-", 1)[0]
        files = {
            f"{name}-vcek.der": answers["vcek"].body,
            f"{chain}-chain.pem": answers["chain"].body,
            f"{chain}.crl": answers["crl"].body,
        }
    for path, data in files.items():
        try:
            yield describe(data, path=path)
        except EvidenceError:
            raise TransportError(f"the answer for {path} is not collateral") from None


def _store(folder: Path, fetched: list[Item], sources: dict[str, dict[str, str]]) -> None:
    """Write the items, and then the list with them and the former ones."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: tuple[Item, ...] = ()
    if (folder / BUNDLE_NAME).is_file():
        kept = read_bundle(folder, without={item.path for item in fetched})
    for item in fetched:
        write_new(folder / item.path, item.data, force=True)
    write_new(folder / BUNDLE_NAME, bundle_json([*kept, *fetched], sources), force=True)


def _to_json(item: Item) -> dict[str, str]:
    return {
        "path": item.path,
        "kind": item.kind,
        "name": item.name,
        "sha256": item.sha256.hex(),
        "not_before": item.not_before.isoformat(),
        "not_after": item.not_after.isoformat(),
    }
