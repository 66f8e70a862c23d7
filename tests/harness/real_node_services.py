"""What kube-proxy and the cluster's DNS do for one node, in user space. A program.

It puts the address of each Service on the loopback device of the network that it runs in,
passes what connects there on to an endpoint of that Service, and answers names below
``cluster.local`` with these addresses. TCP and IPv4 only. Nothing is filtered, so a
NetworkPolicy has no effect here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

DNS_ADDRESS: Final = "10.96.0.10"
DOMAIN: Final = "cluster.local"
_POLL_SECONDS: Final = 0.3
_PIECE: Final = 65_536
_TYPE_A: Final = 1
_NO_SUCH_NAME: Final = 3

Target = tuple[str, int]


class Services:
    """The Services that the API server at ``url`` knows, at their addresses."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self._context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        host, _, port = url.removeprefix("https://").rpartition(":")
        self._api_server = (host, int(port))
        self._names: dict[str, str] = {}
        self._targets: dict[Target, list[Target]] = {}
        self._listening: dict[Target, asyncio.Server] = {}
        self._turns = itertools.count()

    async def run(self) -> None:
        """Follow the API server for ever."""
        await _claim(DNS_ADDRESS)
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: _Dns(self._names), local_addr=(DNS_ADDRESS, 53))
        while True:
            try:
                services = await asyncio.to_thread(self._list, "services")
                endpoints = await asyncio.to_thread(self._list, "endpoints")
            except OSError as error:
                print(f"the API server does not answer: {error}", flush=True)
            else:
                await self._follow(services, endpoints)
            await asyncio.sleep(_POLL_SECONDS)

    def _list(self, kind: str) -> list[dict[str, Any]]:
        path = f"{self._url}/api/v1/{kind}"
        with urllib.request.urlopen(path, context=self._context, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["items"]
        return found

    async def _follow(
        self, services: list[dict[str, Any]], endpoints: list[dict[str, Any]]
    ) -> None:
        behind = {_key(item): item.get("subsets") or [] for item in endpoints}
        self._names.clear()
        for service in services:
            address = service["spec"].get("clusterIP", "None")
            if address == "None":
                continue
            name, namespace = _key(service)
            self._names[f"{name}.{namespace}.svc.{DOMAIN}"] = address
            for port in service["spec"]["ports"]:
                if port.get("protocol", "TCP") != "TCP":
                    continue
                here = (address, port["port"])
                if (name, namespace) == ("kubernetes", "default"):
                    self._targets[here] = [self._api_server]
                else:
                    subsets = behind.get((name, namespace), [])
                    self._targets[here] = _targets(subsets, port.get("name", ""))
                if here not in self._listening:
                    await _claim(address)
                    self._listening[here] = await asyncio.start_server(self._pass_on, *here)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = writer.get_extra_info("sockname")[:2]
        with contextlib.closing(writer):
            targets = self._targets.get(here, [])
            if not targets:
                return
            target = targets[next(self._turns) % len(targets)]
            try:
                far_reader, far_writer = await asyncio.open_connection(*target)
            except OSError as error:
                print(f"{here} to {target}: {error}", flush=True)
                return
            with contextlib.closing(far_writer):
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


class _Dns(asyncio.DatagramProtocol):
    """Answers questions for addresses (RFC 1035); other types have no data."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: object) -> None:
        with contextlib.suppress(IndexError, struct.error, UnicodeDecodeError):
            self._transport.sendto(self._answer(data), address)  # type: ignore[attr-defined]

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode("ascii"))
            at += 1 + size
        question = query[12 : at + 5]
        (kind,) = struct.unpack_from(">H", query, at + 1)
        address = self._names.get(".".join(labels).lower())
        answer = b""
        if address is not None and kind == _TYPE_A:
            number = bytes(int(part) for part in address.split("."))
            answer = b"\xc0\x0c" + struct.pack(">HHIH", _TYPE_A, 1, 2, 4) + number
        code = 0 if address is not None else _NO_SUCH_NAME
        # An authoritative answer to a question that wished for recursion.
        flags = 0x8580 | code
        return query[:2] + struct.pack(">HHHHH", flags, 1, bool(answer), 0, 0) + question + answer


def _targets(subsets: list[dict[str, Any]], port_name: str) -> list[Target]:
    found = []
    for subset in subsets:
        ports = [port["port"] for port in subset["ports"] if port.get("name", "") == port_name]
        addresses = subset.get("addresses") or []
        found += [(address["ip"], port) for address in addresses for port in ports]
    return found


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["metadata"]["name"], item["metadata"]["namespace"]


async def _claim(address: str) -> None:
    words = ("ip", "addr", "replace", f"{address}/32", "dev", "lo")
    await asyncio.to_thread(subprocess.run, words, check=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


if __name__ == "__main__":
    asyncio.run(Services(sys.argv[1], Path(sys.argv[2])).run())
