"""A real HTTPS server elsewhere, with an authority of its own: the `elsewhere` fixture."""

from __future__ import annotations

import hashlib
import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Elsewhere:
    """What it answers, by path, and what it was asked: (path, headers)."""

    host: str
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"https://{self.host}{path}"

    def file(self, path: str, content: bytes) -> str:
        """Serve a file, by ranges too; its SHA-256."""
        self.answers[path] = lambda handler: send(handler, content)
        return hashlib.sha256(content).hexdigest()

    def cut(self, path: str, content: bytes, after: int, times: int = 1) -> str:
        """Serve a file, but end the first connections after so many bytes; its SHA-256."""
        left = [times]

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            left[0] -= 1
            send(handler, content, cut=after if left[0] >= 0 else None)

        self.answers[path] = answer
        return hashlib.sha256(content).hexdigest()

    def slow(self, path: str, content: bytes, begun: threading.Event, go_on: threading.Event | None = None) -> str:
        """Serve half a file, and the rest when it is told to; its SHA-256."""
        goes_on = go_on or self.closing

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            _head(handler, 200, {"Content-Length": str(len(content))})
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            begun.set()
            while not goes_on.wait(0.05):
                if self.closing.is_set():
                    return
            handler.wfile.write(content[len(content) // 2 :])

        self.answers[path] = answer
        return hashlib.sha256(content).hexdigest()

    def trickle(self, path: str, content: bytes, *, piece: int = 1, pause: float = 0.02, times: int | None = None) -> str:
        """Serve a file some bytes at a time, never pausing for long; the first `times` requests alone; its SHA-256."""
        left = [times]

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            if left[0] == 0:
                send(handler, content)
                return
            left[0] = None if left[0] is None else left[0] - 1
            send(handler, content, pieces=(piece, lambda: self.closing.wait(pause)))

        self.answers[path] = answer
        return hashlib.sha256(content).hexdigest()

    def redirect(self, path: str, to: str) -> None:
        self.answers[path] = lambda handler: _head(handler, 302, {"Location": to, "Content-Length": "0"})

    def status(self, path: str, code: int, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = lambda handler: _head(handler, code, {"Content-Length": "0", **named})

    def repository(self, name: str, files: dict[str, bytes], commit: str = "c0" * 20) -> None:
        """A model repository, as the Hugging Face hub shows one; its files lie behind a redirect, as there."""
        siblings = []
        for file, content in files.items():
            sha256 = self.file(f"/storage/{commit}/{file}", content)
            lfs = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": file, "size": len(content), "blobId": "b1", "lfs": lfs})
            self.redirect(f"/{name}/resolve/{commit}/{file}", self.url(f"/storage/{commit}/{file}"))
        body = orjson.dumps({"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings})
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/main", f"/api/models/{name}/revision/{commit}"):
            self.answers[path] = lambda handler: send(handler, body)


def send(
    handler: http.server.BaseHTTPRequestHandler,
    content: bytes,
    cut: int | None = None,
    pieces: tuple[int, Callable[[], bool]] | None = None,
) -> None:
    """A file, or the range of it that is asked for; in `pieces` of so many bytes, with a wait that says when to end."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    first = int(found[1]) if found else 0
    last = min(int(found[2]), len(content) - 1) if found and found[2] else len(content) - 1
    if found and first >= len(content):
        _head(handler, 416, {"Content-Length": "0"})
        return
    part = content[first : last + 1]
    ranged = {"Content-Range": f"bytes {first}-{last}/{len(content)}"} if found else {}
    _head(handler, 206 if found else 200, {"Content-Length": str(len(part)), **ranged})
    if pieces is None:
        handler.wfile.write(part[:cut])
        return
    size, wait = pieces
    for start in range(0, len(part), size):
        handler.wfile.write(part[start : start + size])
        if wait():
            return


def _head(handler: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {**headers, "Connection": "close"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.close_connection = True


@pytest.fixture(scope="session")
def _authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.fixture
def elsewhere(_authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """A server on localhost that this process trusts."""
    authority, path = _authority
    monkeypatch.setenv("SSL_CERT_FILE", str(path))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told = self.path.partition("?")[0]
            served.asked.append((told, dict(self.headers)))
            answer = served.answers.get(told)
            if answer is None:
                _head(self, 404, {"Content-Length": "0"})
            else:
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that hung up is what some tests are about."""

    server = Server(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    served = Elsewhere(f"localhost:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(10)
