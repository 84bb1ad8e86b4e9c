"""A server on this machine that speaks the calls of the Hugging Face Hub that a share uses."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_a_test"
PAGE = 20
"""Files per page of a listing; the Hub has 1,000."""


def is_large(data: bytes) -> bool:
    """Whether a file is stored by git LFS, as the Hub does with what is not text."""
    return b"\0" in data[:512]


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """A dataset repository: its commits, newest last, and its tags."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    ignored: str = ""
    """Paths with this in them are ignored, as by a .gitignore."""

    def commit(self, files: dict[str, bytes], message: str = "a commit of another") -> None:
        listed = repr((len(self.commits), sorted(files.items())))
        self.commits.append((hashlib.sha1(listed.encode()).hexdigest(), files))
        self.messages.append(message)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if c[0] == self.tags.get(revision, revision)), None)


class Hub:
    """The server.

    Attributes:
        repositories: by ``OWNER/NAME``.
        requests: method and path of each request.
        busy: number of requests that are still answered by 429, with these headers.
        before_commit: called once, before the next commit.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.busy: tuple[int, dict[str, str]] = (0, {})
        self.before_commit = lambda: None
        self.packing = ""
        self.url = ""

    def create(self, name: str) -> Repository:
        self.repositories[name] = Repository()
        self.repositories[name].commit({".gitattributes": b"*.bin filter=lfs\n"}, "initial commit")
        return self.repositories[name]


class _RefusedError(Exception):
    """An answer that is an error: status, code and message."""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            self.query = parse_qs(parts.query)
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {parts.path}")
            count, headers = hub.busy
            if count:
                hub.busy = count - 1, headers
                self.send(b"{}", 429, **headers)
                return
            try:
                self.route([unquote(part) for part in parts.path.split("/")[1:]])
            except _RefusedError as refused:
                status, code, message = refused.args
                headers = {"X-Error-Code": code} if code else {}
                error = json.dumps({"error": message}).encode()
                self.send(error, status, **headers, **{"X-Error-Message": message})

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def route(self, path: list[str]) -> None:
            match path:
                case ["lfs", oid]:
                    if self.command == "PUT":
                        assert hashlib.sha256(self.body).hexdigest() == oid
                        hub.objects[oid] = self.body
                    self.send(hub.objects[oid])
                case ["api", "validate-yaml"]:
                    assert json.loads(self.body)["content"].startswith("---\n")
                    self.send_json({"errors": [], "warnings": []})
                case ["api", "datasets", owner, name, *rest]:
                    self.api(self.repository(owner, name), rest)
                case ["datasets", owner, git, "info", "lfs", "objects", "batch"]:
                    self.repository(owner, git.removesuffix(".git"), write=True)
                    self.batch()
                case ["datasets", owner, name, "resolve", revision, *rest]:
                    files = self.revision(self.repository(owner, name), revision)[1]
                    self.resolve(files, "/".join(rest))
                case _:
                    raise _RefusedError(404, "", "unknown address")

        def repository(self, owner: str, name: str, write: bool = False) -> Repository:
            token = self.headers.get("Authorization", "")
            if token not in ("", f"Bearer {TOKEN}"):
                raise _RefusedError(401, "", "Invalid credentials in Authorization header")
            found = hub.repositories.get(f"{owner}/{name}")
            if found is None:
                raise _RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
            if found.gated:
                raise _RefusedError(403, "GatedRepo", "Access to this dataset is restricted")
            if write and not token:
                raise _RefusedError(401, "", "Invalid username or password.")
            return found

        def revision(self, found: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
            at = found.at(revision)
            if at is None:
                raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return at

        def api(self, found: Repository, rest: list[str]) -> None:
            match rest:
                case []:
                    self.send_json({"id": "owner/name", "sha": found.commits[-1][0]})
                case ["tree", revision, *path]:
                    self.tree(self.revision(found, revision)[1], "/".join(path))
                case ["preupload", "main"]:
                    self.preupload(found)
                case ["commit", "main"]:
                    self.commit(found)
                case _:
                    raise _RefusedError(404, "", "unknown address")

        def tree(self, files: dict[str, bytes], path: str) -> None:
            recursive = self.query["recursive"] in (["True"], ["true"])
            start = f"{path}/" if path else ""
            below = sorted(name for name in files if name.startswith(start))
            if path and not below:
                raise _RefusedError(404, "EntryNotFound", f"{path} does not exist")
            items: list[dict[str, object]] = []
            folders = set()
            for name in below:
                inner = name.removeprefix(start).split("/")
                depths = range(1, len(inner)) if recursive else range(1, min(2, len(inner)))
                for folder in (start + "/".join(inner[:n]) for n in depths):
                    if folder not in folders:
                        folders.add(folder)
                        items.append({"type": "directory", "path": folder, "oid": "0" * 40})
                if recursive or len(inner) == 1:
                    items.append(_about(name, files[name]))
            first = int(self.query.get("cursor", ["0"])[0])
            headers = {}
            if first + PAGE < len(items):
                here = urlsplit(self.path).path
                more = f"recursive={recursive}&expand=False&cursor={first + PAGE}"
                headers["Link"] = f'<{hub.url}{here}?{more}>; rel="next"'
            self.send(json.dumps(items[first : first + PAGE]).encode(), **headers)

        def resolve(self, files: dict[str, bytes], path: str) -> None:
            if path not in files:
                raise _RefusedError(404, "EntryNotFound", "Entry not found")
            data = files[path]
            packed = {"Content-Encoding": hub.packing} if hub.packing else {}
            if not is_large(data):
                self.send(data, **packed)
            else:
                oid = hashlib.sha256(data).hexdigest()
                hub.objects[oid] = data
                self.send(b"", 302, Location=f"{hub.url}/lfs/{oid}")

        def preupload(self, found: Repository) -> None:
            answers = []
            for file in json.loads(self.body)["files"]:
                path, large = file["path"], is_large(base64.b64decode(file["sample"]))
                answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
                answer["shouldIgnore"] = bool(found.ignored) and found.ignored in path
                if path in found.files:
                    answer["oid"] = _oid(found.files[path])
                answers.append(answer)
            self.send_json({"files": answers})

        def batch(self) -> None:
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}
                there = wanted["oid"] in hub.objects
                objects.append(wanted if there else wanted | {"actions": upload})
            self.send_json({"transfer": "basic", "objects": objects})

        def commit(self, found: Repository) -> None:
            hub.before_commit()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _RefusedError(401, "", "Invalid username or password.")
            lines = [json.loads(line) for line in self.body.splitlines()]
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, found.commits[-1][0]):
                raise _RefusedError(
                    412, "", "A commit has happened since. Please refresh and try again"
                )
            files = dict(found.files)
            for line in lines[1:]:
                value = line["value"]
                match line["key"]:
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                        assert len(files[value["path"]]) == value["size"]
                    case "deletedFile":
                        del files[value["path"]]
            found.commit(files, header["summary"])
            made = found.commits[-1][0]
            name = next(n for n, repository in hub.repositories.items() if repository is found)
            url = f"{hub.url}/datasets/{name}/commit/{made}"
            self.send_json({"success": True, "commitUrl": url, "commitOid": made})

        def send_json(self, answer: object) -> None:
            self.send(json.dumps(answer).encode())

        def send(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _oid(data: bytes) -> str:
    """The content's id that the Hub tells before an upload."""
    return git_id(data) if not is_large(data) else hashlib.sha256(data).hexdigest()


def _about(path: str, data: bytes) -> dict[str, object]:
    """A file in a listing; one that is stored by git LFS has the id of its pointer."""
    about: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
    if not is_large(data):
        return about | {"oid": git_id(data)}
    oid = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"
    lfs = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
    return about | {"oid": git_id(pointer.encode()), "lfs": lfs}


@contextmanager
def serving() -> Iterator[Hub]:
    """Run the server."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
