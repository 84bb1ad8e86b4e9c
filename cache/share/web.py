"""Read from web servers that may be slow, busy or hostile.

A read is bounded in bytes, also after decompression; in time, by the least speed; and in reach: a
redirect cannot make this machine ask itself, or a machine of its network, on behalf of a server of
the internet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import zlib
from contextvars import ContextVar
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cache.share.patience import BUSY, GRACE_S, SLOWEST, TRIES, WebError, pause

LARGEST_INDEX = 4 << 20
"""Maximum size of the page that lists a folder, in bytes."""
_REDIRECTS = 5
_BLOCK = 1 << 18

_origin: ContextVar[str] = ContextVar("origin")
"""The host of the request, as the user named it."""
_limits: ContextVar[dict[str, int]] = ContextVar("limits")
"""The hosts that the request was redirected to, each with the greatest allowed `closeness`."""


def read_start(files: Any, url: str, count: int) -> bytes:
    """Read the first bytes of a file.

    Args:
        files: fsspec's file system of web servers, made with :func:`make_session`.
        url: the file.
        count: bytes to read at most.

    Raises:
        FileNotFoundError: no such file.
        WebError, aiohttp.ClientError: the server fails, is too slow, or redirects to this network.
    """
    from fsspec.asyn import sync

    return bytes(sync(files.loop, _read, files, url, count))


def names(files: Any, url: str) -> list[str]:
    """List the names in a folder from the links of its page; arguments and errors as above."""
    page = read_start(files, f"{url}/", LARGEST_INDEX + 1)
    if len(page) > LARGEST_INDEX:
        raise WebError(
            f"its list of files has more than {LARGEST_INDEX >> 20} MB; have its owner run a push "
            "into the folder that is served: it writes catalog.json, which is read instead"
        )
    links = _Links()
    links.feed(page.decode("utf-8", "replace"))
    base = f"{url}/"
    below = (urldefrag(urljoin(base, link))[0].partition("?")[0] for link in links.found)
    inside = (unquote(link.removeprefix(base)).rstrip("/") for link in below if link != base)
    return sorted({name for name in inside if name and "/" not in name})


async def make_session(connect_s: float, **options: Any) -> aiohttp.ClientSession:
    """Make the session of a file system: ``get_client`` of fsspec's HTTPFileSystem.

    Args:
        connect_s: seconds until a machine that does not answer counts as unreachable.
        options: further arguments of aiohttp's session, from the user's configuration.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    connector = aiohttp.TCPConnector(resolver=_Resolver(), use_dns_cache=False)
    patience = aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=60)
    defaults: dict[str, Any] = {
        "connector": connector,
        "timeout": patience,
        "trust_env": True,  # proxies from the environment, passwords from ~/.netrc
    }
    # The content is unpacked here, as far as it is wanted.
    return aiohttp.ClientSession(**defaults | options, auto_decompress=False, trace_configs=[trace])


def closeness(address: str) -> int:
    """How close an address is: 0 anywhere, 1 in a private network, 2 on this link, 3 this machine.

    A redirect must not lead to an address that is closer than the server that sent it.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_loopback or ip.is_unspecified:
        return 3
    if ip.is_link_local:
        return 2
    return 0 if ip.is_global and not ip.is_multicast else 1


class _Links(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


class _Resolver(AbstractResolver):
    """The system's resolver, for hosts of redirects within their limit."""

    def __init__(self) -> None:
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        limit = _limits.get({}).get(host)
        if limit is not None:  # again: the name may have got another address since it was checked
            _check_addresses(host, [result["host"] for result in found], limit)
        return found

    async def close(self) -> None:
        await self._system.close()


async def _check_redirect(_session: Any, _context: Any, sent: Any) -> None:
    """Check where a redirect leads, before it is followed.

    Raises:
        WebError: to an address that is closer than the server that the user named.
    """
    location = sent.response.headers.get("Location") or sent.response.headers.get("URI") or ""
    host = sent.url.join(URL(location)).host
    origin = _origin.get()
    if not host or host == origin:
        return
    limit = min(map(closeness, await _addresses(origin)), default=0)
    _limits.get()[host] = limit
    _check_addresses(host, await _addresses(host), limit)


async def _addresses(host: str) -> list[str]:
    """Return the addresses of a host; none if only a proxy knows them."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


def _check_addresses(host: str, addresses: list[str], limit: int) -> None:
    where = ("", "a private network", "the local link", "this machine itself")
    for address in addresses:
        if closeness(address) > limit:
            raise WebError(
                f"the server redirects to {host} ({address}), an address of "
                f"{where[closeness(address)]}; if that is where the files are, name it directly"
            )


async def _read(files: Any, url: str, count: int) -> bytes:
    session = await files.set_session()
    for attempt in range(TRIES):
        async with _Patience() as patience:
            _origin.set(URL(url).host or "")
            _limits.set({})
            headers = {"Accept-Encoding": "identity"}
            async with session.get(url, headers=headers, max_redirects=_REDIRECTS) as response:
                if response.status == 404:
                    raise FileNotFoundError(url)
                if response.status not in BUSY or attempt == TRIES - 1:
                    response.raise_for_status()
                    return await _body(response, count, patience)
                wait_s = pause(response.status, response.headers.get("Retry-After", ""), attempt)
        await asyncio.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


class _Patience:
    """A time limit that grows with the bytes received."""

    def __init__(self) -> None:
        self._limit = asyncio.timeout(GRACE_S)
        self._began = 0.0

    async def __aenter__(self) -> _Patience:
        await self._limit.__aenter__()
        self._began = asyncio.get_running_loop().time()
        return self

    def received(self, count: int) -> None:
        self._limit.reschedule(self._began + GRACE_S + count / SLOWEST)

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._limit.__aexit__(*error)
        except TimeoutError:
            raise WebError(
                f"the server is too slow: {GRACE_S:g} s and less than {SLOWEST / 1000:g} kB/s"
            ) from None


async def _body(response: aiohttp.ClientResponse, count: int, patience: _Patience) -> bytes:
    """Read and unpack at most ``count`` bytes."""
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise WebError(f"the server sends {packing!r:.40} content, though it was asked for plain")
    unpack = None if packing in ("", "identity") else zlib.decompressobj(wbits=47)
    data, received = bytearray(), 0
    while len(data) < count:
        block = await response.content.read(_BLOCK if unpack else min(_BLOCK, count - len(data)))
        if not block:
            break
        received += len(block)
        patience.received(received)
        while block and len(data) < count:
            data += unpack.decompress(block, count - len(data)) if unpack else block
            block = unpack.unconsumed_tail if unpack else b""
    return bytes(data)
