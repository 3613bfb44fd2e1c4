"""A Hugging Face Hub of one model on loopback: the routes that huggingface_hub asks, answered from a folder."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.loopback import listening

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(name: str, folder: Path, asked: list[str]) -> Iterator[str]:
    """The endpoint of a Hub that has the model `name` (branch main, tag v1); asked: the files that were fetched."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer()

        def do_GET(self):
            self._answer()

        def _answer(self):
            path = self.path.split("?")[0]
            for revision in ("main", "v1", COMMIT):
                if path == f"/api/models/{name}/revision/{revision}" or (
                    revision == "main" and path == f"/api/models/{name}"
                ):
                    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                    files = [{"rfilename": file} for file in names]
                    body = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []}
                    return self._send(json.dumps(body).encode(), "application/json")
                if path.startswith(f"/api/models/{name}/tree/{revision}"):
                    rows = [
                        {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size,
                         "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
                        for file in sorted(folder.rglob("*")) if file.is_file()
                    ]  # fmt: skip
                    return self._send(json.dumps(rows).encode(), "application/json")
                file = folder / path.removeprefix(f"/{name}/resolve/{revision}/")
                if path.startswith(f"/{name}/resolve/{revision}/") and file.is_file():
                    asked.append(file.name)
                    return self._send(file.read_bytes(), "application/octet-stream")
            error = "RevisionNotFound" if name in path else "RepoNotFound"
            return self._send(b"{}", "application/json", 404, {"X-Error-Code": error})

        def _send(self, body: bytes, kind: str, status: int = 200, headers: dict | None = None):
            self.send_response(status)
            about = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Content-Type": kind}
            for key, value in (about | {"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with listening(Handler) as endpoint:
        yield endpoint
