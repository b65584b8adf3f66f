"""An HTTP client that asks nobody but whom the policy allows.

It is httpx with another way to connect: each request, and so each redirect, is checked, and a connection goes to an address
that was checked. It takes no proxy from the environment: a proxy would resolve names by itself, past these checks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpcore
import httpx

from fetching.policy import Policy

HUB = "https://huggingface.co"
_REDIRECTS = 5
_CONNECT, _READ = 10.0, 30.0


class SlowError(httpx.TransportError):
    """An answer came more slowly than the policy has it. `from_start`: it never kept up."""

    def __init__(self, rate: float, least: float, *, from_start: bool) -> None:
        super().__init__(f"it came at {rate:.0f} bytes a second, and at least {least:g} are asked for (GRAFT_DOWNLOAD_MIN_RATE)")
        self.from_start = from_start


class Client:
    """GET requests under a policy. One for each fetch: `hang_up` ends what it does from another thread, at once."""

    def __init__(self, policy: Policy, *, read_seconds: float = _READ) -> None:
        self.policy = policy
        self._dialer = _Dialer(policy)
        timeout = httpx.Timeout(read_seconds, connect=min(_CONNECT, read_seconds))
        self._http = httpx.Client(
            transport=_Transport(policy, self._dialer),
            timeout=timeout,
            follow_redirects=True,
            max_redirects=_REDIRECTS,
            trust_env=False,
            headers={"User-Agent": "graft", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()
        self._dialer.close()

    @contextlib.contextmanager
    def get(self, url: str, **headers: str) -> Iterator[httpx.Response]:
        """The answer, its body not yet read. Raises RefusedError, httpx.HTTPError, httpx.InvalidURL."""
        with self._http.stream("GET", url, headers={**_authorization(url, self.policy.token), **headers}) as response:
            yield response

    def hang_up(self) -> None:
        """Cut every connection; whoever reads from one gets an error."""
        self._dialer.hang_up()


def hub() -> str:
    """Where the Hugging Face hub is: `HF_ENDPOINT`, as its own client has it."""
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _authorization(url: str, token: str | None) -> dict[str, str]:
    """The token for the hub itself, and for nobody else: httpx takes it off when it is redirected to another host."""
    here, there = urlsplit(url), urlsplit(hub())
    own = (here.scheme, here.netloc) == (there.scheme, there.netloc)
    return {"Authorization": f"Bearer {token}"} if token and own else {}


class _Pace:
    """How fast a connection answers what it was asked last, in one stretch of time after the other.

    A read has a timeout of its own, but a server that sends a byte within each would have it wait for ever.
    """

    def __init__(self, least: float, seconds: float) -> None:
        self._least, self._seconds = least, seconds
        self.begin()

    def begin(self) -> None:
        """Something was asked."""
        self._since, self._bytes, self._kept_up = time.monotonic(), 0, False

    def count(self, size: int) -> None:
        """So many bytes more have come. Raises SlowError."""
        self._bytes += size
        now = time.monotonic()
        if (seconds := now - self._since) < self._seconds:
            return
        if (rate := self._bytes / seconds) < self._least:
            raise SlowError(rate, self._least, from_start=not self._kept_up)
        self._since, self._bytes, self._kept_up = now, 0, True


class _PacedStream(httpcore.NetworkStream):
    """A connection whose bytes are counted as they come, those of headers too."""

    def __init__(self, stream: httpcore.NetworkStream, pace: _Pace) -> None:
        self._stream, self._pace = stream, pace

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        piece = self._stream.read(max_bytes, timeout)
        if piece:
            self._pace.count(len(piece))
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._pace.begin()

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _PacedStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._pace)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Dialer(httpcore.NetworkBackend):
    """Connects to checked addresses alone, and can cut what it connected."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._tcp = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._cut = False
        self._ends: list[socket.socket] = []  # duplicates: TLS takes the sockets themselves

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._policy.addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"'{host}' cannot be resolved: {error}") from error
        failed: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses:
            try:
                stream = self._tcp.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            self._keep(stream.get_extra_info("socket"))
            return _PacedStream(stream, _Pace(self._policy.min_rate, self._policy.rate_seconds))
        raise failed or httpcore.ConnectError(f"'{host}' has no address")

    def hang_up(self) -> None:
        with self._lock:
            self._cut = True
            for end in self._ends:
                _shut(end)

    def close(self) -> None:
        with self._lock:
            for end in self._ends:
                end.close()
            self._ends.clear()

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            self._ends.append(connection.dup())
            if self._cut:
                _shut(connection)


class _Transport(httpx.BaseTransport):
    """What httpx's own transport does, over these connections."""

    def __init__(self, policy: Policy, dialer: _Dialer) -> None:
        self._policy = policy
        # SSL_CERT_FILE and SSL_CERT_DIR name an operator's own authorities
        self._pool = httpcore.ConnectionPool(ssl_context=httpx.create_ssl_context(), network_backend=dialer)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._policy.check(request.url)
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        asked = httpcore.Request(request.method, url, headers=request.headers.raw, content=b"", extensions=request.extensions)
        with _as_httpx():
            answer = self._pool.handle_request(asked)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions)

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Whatever went wrong on the wire as one kind of error."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TransportError("no answer in time") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise httpx.TransportError(str(error) or type(error).__name__) from error


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
