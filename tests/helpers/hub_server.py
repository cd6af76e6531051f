"""Local Hub for tests of pushing, publishing and loading; it uses only the standard library.

It implements the part of the Hub's HTTP interface that huggingface_hub, transformers and datasets use:
creating repositories, commits with small files inline and large ones as LFS objects, listings and
downloads by branch or commit. All data is in memory and is lost when the process ends.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})

huggingface_hub reads HF_ENDPOINT at import, so clients of this server run in a separate process, started
with `environment`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_local"
LFS_FROM = 100_000  # bytes: files of at least this size are LFS objects
LFS_ALWAYS = (".safetensors", ".parquet", ".bin", ".arrow")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Repository:
    """The commits of one repository; each commit maps file names to bytes."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (commit, message)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        seed = f"{self.kind}/{self.name}/{branch}/{len(self.commits)}/{message}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision in self.tags:
            return self.tags[revision][0]
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """Serve on a free port of 127.0.0.1 inside a `with` block."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.requests: list[str] = []
        # Called with every request before the answer, to stop or kill the client; True refuses the request.
        self.before: Callable[[str], bool | None] = lambda request: None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put(self, kind: str, name: str, folder: Path) -> None:
        """Make a repository with the files of a folder."""
        repository = Repository(kind, name)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repository.commit("main", files, "as published")
        self.repositories[kind, name] = repository

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment variables for a process that uses this Hub, with caches under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository at a branch or commit."""
        repository = self.repositories[kind, name]
        oid = repository.resolve(revision)
        assert oid is not None, f"{kind} {name} has no revision {revision}"
        return repository.commits[oid]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    # Answers

    def _send(
        self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None
    ) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    # Requests

    def _handle(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.before(f"{self.command} {path}"):
            return self._fail(503, "", "out of order")
        writes = self.command in ("POST", "PUT", "DELETE") and "/paths-info/" not in path
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        # As on the Hub, an object's address includes its authorization.
        if writes and not known and not path.startswith("/objects/"):
            return self._fail(401, "", "Invalid credentials in Authorization header")
        with self.hub.lock:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return action(self, match, query, body)
        self._fail(404, "", f"no such address: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repositories.get((KINDS[kind], unquote(name)))
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            self._fail(404, "RepoNotFound", "Repository not found")
            return None
        return found

    def _files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(kind, name)
        if repository is None:
            return None
        oid = repository.resolve(unquote(revision))
        if oid is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return oid, repository.commits[oid]

    def whoami(self, *_: Any) -> None:
        self._send(200, {"type": "user", "name": "user", "orgs": [], "auth": {"type": "token"}})

    def yaml(self, match: re.Match, query: dict, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def create(self, match: re.Match, query: dict, body: bytes) -> None:
        asked = json.loads(body)
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repositories:
            return self._send(409, {"error": "You already created this repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = Repository(kind, name, private=private)
        self.hub.repositories[kind, name] = repository
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_ALWAYS)
        repository.commit("main", {".gitattributes": attributes.encode()}, "initial commit")
        self._send(200, {"url": url, "name": name, "id": name})

    def branch(self, match: re.Match, query: dict, body: bytes) -> None:
        repository = self._repository(match["kind"], match["name"])
        if repository is None:
            return
        name = unquote(match["revision"])
        if self.command == "DELETE":
            found = repository.branches.pop(name, None)
            return self._send(200, {}) if found else self._fail(404, "", "Reference not found")
        if name in repository.branches:
            return self._fail(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.branches[name] = repository.branches.get(start, start)
        self._send(200, {})

    def refs(self, match: re.Match, query: dict, body: bytes) -> None:
        repository = self._repository(match["kind"], match["name"])
        if repository is None:
            return
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repository.branches.items()
        ]
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, (oid, _) in repository.tags.items()
        ]
        self._send(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def tag(self, match: re.Match, query: dict, body: bytes) -> None:
        repository = self._repository(match["kind"], match["name"])
        if repository is None:
            return
        if self.command == "DELETE":
            found = repository.tags.pop(unquote(match["revision"]), None)
            return self._send(200, {}) if found else self._fail(404, "", "Tag not found")
        asked = json.loads(body)
        oid = repository.resolve(unquote(match["revision"]))
        if oid is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if asked["tag"] in repository.tags:
            return self._fail(409, "", "Tag reference exists already")
        repository.tags[asked["tag"]] = (oid, asked.get("message", ""))
        self._send(200, {})

    def preupload(self, match: re.Match, query: dict, body: bytes) -> None:
        found = self._files(match["kind"], match["name"], match["revision"])
        if found is None:
            return
        answer = []
        for file in json.loads(body)["files"]:
            old = found[1].get(file["path"])
            large = file["size"] >= LFS_FROM or file["path"].endswith(LFS_ALWAYS)
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if old is None else _oid(old),
                }
            )
        self._send(200, {"files": answer})

    def lfs_batch(self, match: re.Match, query: dict, body: bytes) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                address = f"{self.hub.url}/objects/{item['oid']}"
                entry["actions"] = {
                    "upload": {"href": address},
                    "verify": {"href": f"{address}/verify"},
                }
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put_object(self, match: re.Match, query: dict, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            return self._fail(400, "", "the object's content does not have its name's hash")
        self.hub.objects[match["oid"]] = body
        self._send(200)

    def verify_object(self, match: re.Match, query: dict, body: bytes) -> None:
        found = match["oid"] in self.hub.objects
        self._send(200 if found else 404, {})

    def commit(self, match: re.Match, query: dict, body: bytes) -> None:
        found = self._files(match["kind"], match["name"], match["revision"])
        if found is None:
            return
        files, message = dict(found[1]), ""
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, found[0]):
                    return self._fail(412, "", "The branch has moved since the parent commit")
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._fail(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif entry["key"] == "deletedFolder":
                files = {k: v for k, v in files.items() if not k.startswith(value["path"])}
            else:
                return self._fail(400, "", f"unknown commit entry {entry['key']!r}")
        repository = self.hub.repositories[KINDS[match["kind"]], unquote(match["name"])]
        branch = unquote(match["revision"])
        url = f"{self.hub.url}/{'' if match['kind'] == 'models' else match['kind'] + '/'}"
        answer: dict[str, Any] = {"success": True}
        if query.get("create_pr", ["0"])[0].lower() in ("1", "true"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            branch = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{url}{repository.name}/discussions/{number}"
        oid = repository.commit(branch, files, message)
        answer |= {"commitOid": oid, "commitUrl": f"{url}{repository.name}/commit/{oid}"}
        self._send(200, answer)

    def info(self, match: re.Match, query: dict, body: bytes) -> None:
        found = self._files(match["kind"], match["name"], match["revision"] or "main")
        if found is None:
            return
        oid, files = found
        repository = self.hub.repositories[KINDS[match["kind"]], unquote(match["name"])]
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": _oid(content)}
            for name, content in sorted(files.items())
        ]
        self._send(
            200,
            {
                "id": repository.name,
                "sha": oid,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "cardData": _metadata(files.get("README.md", b"")),
            },
        )

    def tree(self, match: re.Match, query: dict, body: bytes) -> None:
        found = self._files(match["kind"], match["name"], match["revision"])
        if found is None:
            return
        folder = unquote(match["path"] or "").strip("/")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        below = {
            name: content
            for name, content in sorted(found[1].items())
            if not folder or name.startswith(folder + "/")
        }
        if folder and not below:
            return self._fail(404, "EntryNotFound", f"{folder} does not exist")
        entries: dict[str, dict] = {}
        for name, content in below.items():
            inside = name[len(folder) + 1 :] if folder else name
            parts = inside.split("/")
            for depth in range(1, len(parts)):
                if depth == 1 or recursive:
                    directory = "/".join(filter(None, [folder, *parts[:depth]]))
                    entries.setdefault(directory, _folder(directory))
            if len(parts) == 1 or recursive:
                entries[name] = _file(name, content)
        self._send(200, list(entries.values()))

    def paths(self, match: re.Match, query: dict, body: bytes) -> None:
        found = self._files(match["kind"], match["name"], match["revision"])
        if found is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(body)["paths"]
        else:
            asked = parse_qs(body.decode()).get("paths", [])
        entries = []
        for name in [asked] if isinstance(asked, str) else asked:
            if name in found[1]:
                entries.append(_file(name, found[1][name]))
            elif any(other.startswith(name.rstrip("/") + "/") for other in found[1]):
                entries.append(_folder(name))
        self._send(200, entries)

    def download(self, match: re.Match, query: dict, body: bytes) -> None:
        prefix = (match["prefix"] or "models/").rstrip("/")
        found = self._files(prefix, match["name"], match["revision"])
        if found is None:
            return
        oid, files = found
        name = unquote(match["path"])
        if name not in files:
            return self._fail(404, "EntryNotFound", f"{name} does not exist at {oid}")
        content, status = files[name], 200
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": oid,
            "ETag": f'"{_oid(content)}"',
            "Accept-Ranges": "bytes",
        }
        if _is_lfs(name, content):
            headers["X-Linked-Size"] = str(len(content))
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and any(wanted.groups()):
            total = len(content)
            if wanted[1]:
                start, end = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            else:
                start, end = max(total - int(wanted[2]), 0), total - 1
            if start >= total:
                return self._send(416, b"", {"Content-Range": f"bytes */{total}"})
            content, status = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        self._send(status, content, headers)


def _oid(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _metadata(card: bytes) -> dict:
    """The YAML at the top of a card."""
    parts = card.decode(errors="replace").split("---\n", 2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0] else {}


def _is_lfs(name: str, content: bytes) -> bool:
    return len(content) >= LFS_FROM or name.endswith(LFS_ALWAYS)


def _file(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": _oid(content),
    }
    if _is_lfs(name, content):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry


def _folder(name: str) -> dict[str, Any]:
    return {
        "type": "directory",
        "path": name,
        "size": 0,
        "oid": hashlib.sha1(name.encode()).hexdigest(),
    }


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/validate-yaml", _Handler.yaml),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST", "DELETE"), _REPO + r"/branch/(?P<revision>[^/]+)", _Handler.branch),
    (("POST", "DELETE"), _REPO + r"/tag/(?P<revision>[^/]+)", _Handler.tag),
    (("GET",), _REPO + r"/refs", _Handler.refs),
    (("POST",), _REPO + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), _REPO + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("GET",), _REPO + r"/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    (("POST",), _REPO + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths),
    (("GET", "HEAD"), _REPO + r"(/revision/(?P<revision>[^/]+))?", _Handler.info),
    (("POST",), r"/(?P<repo>.+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/objects/(?P<oid>[0-9a-f]{64})", _Handler.put_object),
    (("POST",), r"/objects/(?P<oid>[0-9a-f]{64})/verify", _Handler.verify_object),
    (
        ("GET", "HEAD"),
        r"/(?P<prefix>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.download,
    ),
]
