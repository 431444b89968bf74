"""A Hugging Face Hub on loopback, for tests of uploading and downloading models.

It keeps repositories in memory and answers the requests that `huggingface_hub` makes for creating a repository,
committing files (small ones inline, large ones through LFS) and resolving them. The client reads its settings when it
is imported, so the code under test runs in a fresh process with [`HubServer.environment`]:

    with HubServer() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(HF_HOME=...))
        hub.files("me/model")["config.json"]
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


LFS_THRESHOLD = 1 << 20
USER = "me"


@dataclass
class Commit:
    """One state of a repository: its files, by path."""

    revision: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository with one branch, `main`."""

    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit(hashlib.sha1(b"empty").hexdigest(), {})])

    def commit(self, changed: dict[str, bytes], deleted: list[str]) -> Commit:
        files = {path: data for path, data in self.commits[-1].files.items() if path not in deleted} | changed
        digest = hashlib.sha1(self.commits[-1].revision.encode())
        for path, data in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha1(data).digest())
        self.commits.append(Commit(digest.hexdigest(), files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.revision == revision), None)


@dataclass
class Response:
    """What the server sends back."""

    body: bytes | dict | list = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def not_found(code: str) -> Response:
    """A 404 as the Hub sends it: the client picks its exception by the header `X-Error-Code`."""
    return Response({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})


class HubServer:
    """The server; a context manager that listens on 127.0.0.1 while it is open.

    `unknown_requests` collects what it had no answer for; a test can check that it stays empty.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.unknown_requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (HubHandler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a client process. Uploads go through plain LFS, which needs no further service."""
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return {**os.environ, **settings, **variables}

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files of a repository's newest commit."""
        return self.repositories[repo_id].commits[-1].files

    def answer(self, method: str, path: str, body: bytes) -> Response:
        for pattern, handle in ROUTES:
            if match := re.fullmatch(pattern, path):
                return handle(self, method, body, *(unquote(group or "") for group in match.groups()))
        self.unknown_requests.append(f"{method} {path}")
        return Response({"error": "unknown request"}, 404)

    def who_am_i(self, method: str, body: bytes) -> Response:
        token = {"role": "write", "displayName": "test"}
        return Response(
            {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"accessToken": token}},
        )

    def validate_yaml(self, method: str, body: bytes) -> Response:
        return Response({"errors": [], "warnings": []})

    def create_repository(self, method: str, body: bytes) -> Response:
        request = json.loads(body)
        owned = f"{request.get('organization') or USER}/{request['name']}"
        # a Space may have the name of a model
        repo_id = f"spaces/{owned}" if request.get("type") == "space" else owned
        if repo_id in self.repositories:
            return Response({"error": "You already created this model repo", "url": f"{self.url}/{repo_id}"}, 409)
        self.repositories[repo_id] = Repository(private=request.get("visibility") == "private")
        return Response({"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def choose_upload_mode(self, method: str, body: bytes, repo_id: str) -> Response:
        if repo_id not in self.repositories:
            return not_found("RepoNotFound")
        files = [
            {
                "path": file["path"],
                "shouldIgnore": False,
                "uploadMode": "lfs" if file["size"] > LFS_THRESHOLD else "regular",
            }
            for file in json.loads(body)["files"]
        ]
        return Response({"files": files})

    def offer_lfs(self, method: str, body: bytes, repo_id: str) -> Response:
        objects = []
        for item in json.loads(body)["objects"]:
            item = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.lfs_objects:
                item["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}", "header": {}}}
            objects.append(item)
        return Response({"transfer": "basic", "objects": objects})

    def store_lfs(self, method: str, body: bytes, oid: str) -> Response:
        if hashlib.sha256(body).hexdigest() != oid:
            return Response({"error": "the content does not have this hash"}, 422)
        self.lfs_objects[oid] = body
        return Response()

    def commit(self, method: str, body: bytes, repo_id: str) -> Response:
        if repo_id not in self.repositories:
            return not_found("RepoNotFound")
        changed: dict[str, bytes] = {}
        deleted: list[str] = []
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changed[value["path"]] = self.lfs_objects[value["oid"]]
            elif key == "deletedFile":
                deleted.append(value["path"])
        revision = self.repositories[repo_id].commit(changed, deleted).revision
        url = f"{self.url}/{repo_id}/commit/{revision}"
        return Response({"success": True, "commitOid": revision, "commitUrl": url, "hookOutput": ""})

    def describe(self, method: str, body: bytes, repo_id: str, revision: str) -> Response:
        commit, error = self._find(repo_id, revision or "main")
        if commit is None:
            return error
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        private = self.repositories[repo_id].private
        return Response(
            {"_id": "0", "id": repo_id, "sha": commit.revision, "private": private, "tags": [], "siblings": siblings}
        )

    def list_tree(self, method: str, body: bytes, repo_id: str, revision: str, folder: str) -> Response:
        commit, error = self._find(repo_id, revision)
        if commit is None:
            return error
        entries = [
            {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
            for path, data in sorted(commit.files.items())
            if path.startswith(folder)
        ]
        return Response(entries) if entries or not folder else not_found("EntryNotFound")

    def resolve(self, method: str, body: bytes, repo_id: str, revision: str, path: str) -> Response:
        commit, error = self._find(repo_id, revision)
        if commit is None:
            return error
        if path not in commit.files:
            missing = not_found("EntryNotFound")
            missing.headers["X-Repo-Commit"] = commit.revision
            return missing
        data = commit.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return Response(data, headers={"ETag": etag, "X-Repo-Commit": commit.revision, "Accept-Ranges": "bytes"})

    def _find(self, repo_id: str, revision: str) -> tuple[Commit | None, Response]:
        if repo_id not in self.repositories:
            return None, not_found("RepoNotFound")
        return self.repositories[repo_id].at(revision), not_found("RevisionNotFound")


REPO = r"([^/]+/[^/]+?)"


def of_space(handle: Callable[..., Response]) -> Callable[..., Response]:
    """Let a handler of models answer for a Space."""

    def answer(hub: HubServer, method: str, body: bytes, repo_id: str, *rest: str) -> Response:
        return handle(hub, method, body, f"spaces/{repo_id}", *rest)

    return answer


# what is asked of a repository: below the API, and below its own address
API_ROUTES = (
    (f"{REPO}/preupload/[^/]+", HubServer.choose_upload_mode),
    (f"{REPO}/commit/[^/]+", HubServer.commit),
    (f"{REPO}/tree/([^/]+)(?:/(.*))?", HubServer.list_tree),
    (f"{REPO}(?:/revision/([^/]+))?", HubServer.describe),
)
OWN_ROUTES = (
    (rf"{REPO}\.git/info/lfs/objects/batch", HubServer.offer_lfs),
    (f"{REPO}/resolve/([^/]+)/(.+)", HubServer.resolve),
)
# the first pattern that matches the whole path answers
ROUTES: tuple[tuple[str, Callable[..., Response]], ...] = (
    ("/api/whoami-v2", HubServer.who_am_i),
    ("/api/validate-yaml", HubServer.validate_yaml),
    ("/api/repos/create", HubServer.create_repository),
    (r"/lfs/(\w+)", HubServer.store_lfs),
    *((f"/api/models/{pattern}", handle) for pattern, handle in API_ROUTES),
    *((f"/api/spaces/{pattern}", of_space(handle)) for pattern, handle in API_ROUTES),
    *((f"/spaces/{pattern}", of_space(handle)) for pattern, handle in OWN_ROUTES),
    *((f"/{pattern}", handle) for pattern, handle in OWN_ROUTES),
)


class HubHandler(BaseHTTPRequestHandler):
    """Read a request, have the server answer it, and write the response."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        response = self.hub.answer(self.command, path, self._read_body())
        is_json = not isinstance(response.body, bytes)
        body = json.dumps(response.body).encode() if is_json else response.body
        self.send_response(response.status)
        self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond
