"""Web servers that are slow, busy, endless or lead elsewhere: real ones on this machine."""

import email.utils
import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cache.__main__ import main
from cache.share import catalog, web
from cache.share.location import Location, ShareError
from cache.share.push import push
from tests.stores import build_store

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, host: str = "127.0.0.1") -> Iterator[str]:
    """Run a server that answers each GET by a function; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def start_endless(handler: BaseHTTPRequestHandler, **headers: str) -> None:
    handler.send_response(200)
    for name, value in ({"Connection": "close"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


# --- endless --------------------------------------------------------------------------------------


def test_of_an_endless_answer_only_the_start_is_read():
    def endless(handler):
        start_endless(handler)
        while True:
            handler.wfile.write(b"<a href='x/'>x</a>" * 10_000)

    with serving(endless) as url:
        assert len(Location.parse(url).read("zarr.json", 1000)) == 1001
        with pytest.raises(ShareError, match=r"list of files has more than 4 MB.*catalog\.json"):
            Location.parse(url).names()
        with pytest.raises(ShareError, match=r"catalog\.json"):
            catalog.entries(Location.parse(url))


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_of_a_packed_answer_only_the_start_is_unpacked(packing):
    asked = []
    pack = zlib.compressobj(wbits=31 if packing == "gzip" else 15)
    bomb = b"".join(pack.compress(bytes(1 << 20)) for _ in range(1000)) + pack.flush()

    def answer(handler):
        asked.append(handler.headers["Accept-Encoding"])
        send(handler, bomb, Content_Encoding=packing)

    with serving(answer) as url:
        assert Location.parse(url).read("a", 5000) == bytes(5001)
    assert asked == ["identity"]


def test_a_packed_answer_is_read_as_it_was():
    content = bytes(range(256)) * 3000
    with serving(lambda h: send(h, gzip.compress(content), Content_Encoding="gzip")) as url:
        assert Location.parse(url).read("a", 10**7) == content
    message = "sends 'br' content, though it was asked for plain"
    with (
        serving(lambda h: send(h, content, Content_Encoding="br")) as url,
        pytest.raises(ShareError, match=message),
    ):
        Location.parse(url).read("a", 10**7)


def test_the_links_of_a_page_are_its_names():
    page = (
        "<a href='toy/'>toy</a> <A HREF=\"/base/my%20data/\">x</A> <a href='../'>..</a> <a name=x>"
        "<a href='?C=N;O=D'>sort</a> <a href='/elsewhere/'> <a href='http://example.org/base/z'>"
        "<a href='a/b'> <a href='toy/#top'> <a href='..%2f..%2fetc'>"
    )
    with serving(lambda h: send(h, page.encode(), Content_Type="text/html")) as url:
        assert Location.parse(f"{url}/base").names() == ["my data", "toy"]


# --- slow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_is_given_up(monkeypatch, part):
    monkeypatch.setattr(web, "GRACE_S", 0.5)

    def drip(handler):
        if part == "body":
            start_endless(handler)
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for n in range(600):
            handler.wfile.write(b"x" if part == "body" else b"X-%d: x\r\n" % n)
            handler.wfile.flush()
            time.sleep(0.05)

    with serving(drip) as url:
        began = time.monotonic()
        with pytest.raises(ShareError, match=r"/a: the server is too slow: 0\.5 s and less than 4"):
            Location.parse(url).read("a")
        assert time.monotonic() - began < 20


def test_a_server_above_the_least_speed_is_waited_for(monkeypatch):
    monkeypatch.setattr(web, "GRACE_S", 0.5)

    def steady(handler):
        start_endless(handler)
        for _ in range(20):
            handler.wfile.write(b"x" * 4000)
            time.sleep(0.1)

    with serving(steady) as url:
        assert len(Location.parse(url).read("a")) == 80_000


# --- busy -----------------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", ["1", lambda: http_date(2), lambda: http_date(-99), "0"])
def test_a_busy_server_is_asked_again_when_it_says(status, after):
    asked = []

    def busy_once(handler):
        asked.append(time.time())
        if len(asked) == 1:
            when = after() if callable(after) else after
            send(handler, b"busy", status, Retry_After=when)
        else:
            send(handler, b"content")

    with serving(busy_once) as url:
        assert Location.parse(url).read("a") == b"content"
    assert len(asked) == 2
    if after == "1":
        assert asked[1] - asked[0] > 0.9


@pytest.mark.parametrize("after", ["86400", "9" * 400, lambda: http_date(86400)])
def test_a_server_that_asks_for_hours_is_not_waited_for(after):
    asked = []

    def busy(handler):
        asked.append(1)
        when = after() if callable(after) else after
        send(handler, b"busy", 503, Retry_After=when)

    with serving(busy) as url, pytest.raises(ShareError, match=r"status 503.* asks to wait \d+ s"):
        Location.parse(url).read("a")
    assert len(asked) == 1


def test_a_server_that_stays_busy_is_given_up():
    asked = []

    def busy(handler):
        asked.append(1)
        send(handler, b"busy", 429, Retry_After="0")

    with serving(busy) as url, pytest.raises(ShareError, match="429"):
        Location.parse(url).read("a")
    assert len(asked) == 4


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "closeness"),
    [
        *(("8.8.8.8", 0), ("2606:4700::1111", 0), ("::ffff:8.8.8.8", 0)),
        *(
            ("10.1.2.3", 1),
            ("172.16.0.1", 1),
            ("192.168.1.1", 1),
            ("100.64.0.1", 1),
            ("fd00::1", 1),
        ),
        *(("224.0.0.1", 1), ("::ffff:192.168.1.1", 1), ("2002:c0a8:0101::1", 1)),
        *(("169.254.169.254", 2), ("fe80::1", 2), ("fe80::1%eth0", 2), ("::ffff:169.254.1.1", 2)),
        *(("127.0.0.1", 3), ("127.9.9.9", 3), ("::1", 3), ("0.0.0.0", 3), ("::", 3)),
        *(("::ffff:127.0.0.1", 3), ("2002:7f00:0001::1", 3)),
    ],
)
def test_how_close_an_address_is(address, closeness):
    assert web.closeness(address) == closeness


@pytest.fixture
def public(monkeypatch):
    """Treat 127.0.0.2 as an address of the internet."""
    real = web.closeness
    monkeypatch.setattr(web, "closeness", lambda a: 0 if a == "127.0.0.2" else real(a))


def redirect_to(target: str) -> Answer:
    return lambda handler: send(handler, b"", 302, Location=target)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_a_public_server_cannot_redirect_to_this_machine(public, host):
    asked = []

    def secret(handler):
        asked.append(handler.path)
        send(handler, b"secret")

    with serving(secret) as inside:
        target = inside.replace("127.0.0.1", host)
        with (
            serving(redirect_to(f"{target}/admin"), "127.0.0.2") as outside,
            pytest.raises(ShareError, match=r"redirects to .* this machine itself; if that"),
        ):
            Location.parse(outside).read("a")
    assert not asked


def test_a_chain_of_redirects_is_held_to_its_first_server(public):
    with (
        serving(lambda h: send(h, b"secret")) as inside,
        serving(redirect_to(f"{inside}/admin"), "127.0.0.2") as second,
        serving(redirect_to(f"{second}/b"), "127.0.0.2") as outside,
        pytest.raises(ShareError, match=r"redirects to 127\.0\.0\.1"),
    ):
        Location.parse(outside).read("a")


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "[fe80::1]"])
def test_a_public_server_cannot_redirect_into_a_network(public, address):
    with (
        serving(redirect_to(f"http://{address}/latest"), "127.0.0.2") as outside,
        pytest.raises(ShareError, match=r"a private network|the local link"),
    ):
        Location.parse(outside).read("a")


def test_a_name_that_changes_its_address_is_refused_when_it_is_connected(public, monkeypatch):
    """The first look-up, which is checked, gives a public address; the second does not."""
    real, asked = web.closeness, []

    def changing(address):
        if address == "127.0.0.1" and not asked:
            asked.append(address)
            return 0
        return real(address)

    monkeypatch.setattr(web, "closeness", changing)
    with serving(lambda h: send(h, b"secret")) as inside:
        target = inside.replace("127.0.0.1", "localhost")
        with (
            serving(redirect_to(target), "127.0.0.2") as outside,
            pytest.raises(ShareError, match="this machine itself"),
        ):
            Location.parse(outside).read("a")


def test_other_redirects_are_followed(public):
    with serving(lambda h: send(h, h.path.encode()), "127.0.0.2") as other:
        for origin in ("127.0.0.1", "127.0.0.2"):
            with serving(redirect_to(f"{other}/moved"), origin) as url:
                assert Location.parse(url).read("a") == b"/moved"
    with (
        serving(lambda h: send(h, h.path.encode())) as other,
        serving(redirect_to(f"{other}/moved")) as url,
    ):
        assert Location.parse(url).read("a") == b"/moved"


def test_redirects_without_end_are_given_up():
    asked = []

    def again(handler):
        asked.append(handler.path)
        send(handler, b"", 302, Location=f"/{len(asked)}")

    with serving(again) as url, pytest.raises(ShareError):
        Location.parse(url).read("a")
    assert len(asked) <= 6


def test_a_proxy_of_the_environment_is_used(public, monkeypatch):
    """It may have any address, and it knows hosts that this machine does not."""
    asked = []

    def proxy(handler):
        asked.append(handler.path)
        if handler.path.startswith("http://share.invalid/"):
            send(handler, b"", 302, Location="http://other.invalid/b")
        else:
            send(handler, b"content")

    with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert Location.parse("http://share.invalid").read("a") == b"content"
    assert asked == ["http://share.invalid/a", "http://other.invalid/b"]


def test_a_whole_share_is_pulled_from_a_busy_server_that_redirects(tmp_path):
    share = tmp_path / "share"
    push(build_store(tmp_path / "stores"), str(share))
    seen = set()

    def files(handler):
        path = share / handler.path.lstrip("/")
        if handler.path not in seen:
            seen.add(handler.path)
            send(handler, b"", 503, Retry_After="0")
        elif path.is_file():
            send(handler, path.read_bytes())
        else:
            send(handler, b"", 404)

    with (
        serving(files) as url,
        serving(lambda h: send(h, b"", 307, Location=url + h.path)) as front,
    ):
        assert main(["pull", front, "--stores", str(tmp_path / "pulled")]) == 0
    assert json.loads((share / "catalog.json").read_text())["stores"]
