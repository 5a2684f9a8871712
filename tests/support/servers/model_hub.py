"""A model hub on 127.0.0.1: one checkpoint, for callers with its token.

Only what `huggingface_hub` requests for a snapshot or a file: the commit, the list of files, each file.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a folder as the repository `model_id`."""

    def __init__(self, folder: Path, *, model_id: str, token: str) -> None:
        self.downloads = 0
        hub = self
        info = f"/api/models/{model_id}/revision/"
        tree = f"/api/models/{model_id}/tree/{COMMIT}"
        contents = list_contents(folder, model_id)

        class Answers(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if self.headers["Authorization"] != f"Bearer {token}":
                    self._answer(401, b"")
                elif path.startswith(info):
                    self._answer(200, json.dumps({"id": model_id, "sha": COMMIT}).encode())
                elif path == tree:
                    self._answer(200, json.dumps(list_files(folder)).encode())
                elif path in contents:
                    body = contents[path].read_bytes()
                    hub.downloads += self.command == "GET"
                    self._answer(200, body)
                else:
                    self._answer(404, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Error-Code", {404: "EntryNotFound"}.get(status, ""))
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def list_files(folder: Path) -> list[dict[str, object]]:
    """List a folder as the hub does."""
    return [
        {
            "type": "file",
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "oid": hashlib.sha256(path.read_bytes()).hexdigest()[:40],
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def list_contents(folder: Path, model_id: str) -> dict[str, Path]:
    """Return the files by the paths at which the hub serves them."""
    return {
        f"/{model_id}/resolve/{revision}/{path.relative_to(folder).as_posix()}": path
        for revision in (COMMIT, "main")
        for path in folder.rglob("*")
        if path.is_file()
    }
