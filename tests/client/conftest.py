"""A small HTTP server that answers as it is told, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from client.http import Client


class FakeService:
    """`answers[path]` is called with the query and the body; it gives (status, media type, chunks, whole?[, headers])."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[..., tuple[Any, ...]]] = {}
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                length = int(self.headers.get("Content-Length") or 0)
                if len(sent := self.rfile.read(length)) < length:  # whoever sent it is gone
                    self.close_connection = True
                    return
                body = (json.loads(sent) if self.headers["Content-Type"] == "application/json" else sent) if length else None
                service.headers.append(dict(self.headers))
                service.asked.append((self.command, parts.path, query, body))
                status, media, chunks, whole, *headers = service.answers[parts.path](query, body)
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", media)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in chunks:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                if whole:
                    self.wfile.write(b"0\r\n\r\n")
                else:  # the connection breaks off in the middle
                    self.close_connection = True

            do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005})
        self._thread.start()

    def answer(self, path: str, body: Any, status: int = 200) -> None:
        """Answer `path` with JSON."""
        media = "application/problem+json" if status >= 400 else "application/json"
        self.answers[path] = lambda _query, _body: (status, media, [json.dumps(body).encode()], True)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[FakeService]:
    made = FakeService()
    yield made
    made.close()


@pytest.fixture
def client(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("client.http.RETRY_SECONDS", 0.01)
    with Client(service.url, patience=0.5) as made:
        yield made


@pytest.fixture
def job() -> dict[str, Any]:
    """A job as the API has it."""
    return {
        "id": 7,
        "name": "digits",
        "labels": {"team": "web"},
        "state": "queued",
        "requested": None,
        "spec": {"model": {"name": "torchvision:resnet18"}, "dataset": {"source": "sklearn:digits"}},
        "progress": {"step": 0, "steps": 10, "epoch": 0, "epochs": 2, "share": 0.0},
        "latest": {"loss": None, "lr": None, "mean_loss": None, "validation": None, "samples_per_second": None},
        "best": None,
        "attempt": 0,
        "failures": 0,
        "failure": None,
        "forked_from": None,
        "ran_seconds": 83.25,
        "position": 2,
        "eta_seconds": None,
        "warnings": ["no worker serves the queue 'default'"],
        "waits_for": [],
        "created_at": "2026-01-31T12:00:00.000Z",
        "queued_at": "2026-01-31T12:00:00.000Z",
        "started_at": None,
        "ended_at": None,
    }


@pytest.fixture
def log() -> list[dict[str, Any]]:
    """The events of a job of ten iterations in two epochs, as they are stored."""
    data: list[tuple[int, str, dict[str, Any]]] = [(0, "state", {"state": "queued"}), (0, "state", {"state": "running"})]
    for epoch in range(2):
        for first in range(5 * epoch, 5 * epoch + 5):
            iterations = {"epoch": epoch, "first": first, "losses": [2.0 / (first + 1)], "lr": {"default": 0.001}}
            data.append((first + 1, "iterations", iterations))
        figures = {"loss": 0.5, "top1": 0.8 + 0.1 * epoch}
        done = {"epoch": epoch, "mean_loss": 0.7, "validation": figures, "seconds": 1.5, "samples_per_second": 100.0}
        data.append((5 * epoch + 5, "epoch", done))
    data.append((10, "state", {"state": "succeeded"}))
    data.append((10, "end", {"state": "succeeded", "failure": None, "last_seq": len(data) + 1}))
    return [
        {"seq": seq, "at": "2026-01-31T12:00:00.000Z", "attempt": 1, "step": step, "kind": kind, "data": payload}
        for seq, (step, kind, payload) in enumerate(data, start=1)
    ]
