"""`python -m api`: serve the API with uvicorn."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from store.startup import settings_or_exit

GRACE_SECONDS = 5
"""Streams end at once; a request that takes longer is cut off."""
BACKLOG = 2048
_PR_SET_PDEATHSIG = 1


class Server(uvicorn.Server):
    """uvicorn, which says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, port_file: Path | None) -> None:
        super().__init__(config)
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell the port: on standard output, and in a file that appears whole."""
        await super().startup(sockets)
        if not sockets or not self.started:
            return
        host, port = sockets[0].getsockname()[:2]
        if self._port_file is not None:
            part = self._port_file.with_name(f".{self._port_file.name}.{os.getpid()}")
            part.write_text(f"{port}\n")
            part.replace(self._port_file)
        sys.stdout.write(f"Graft listens on http://{f'[{host}]' if ':' in host else host}:{port}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    options = _parser().parse_args(arguments)
    if options.with_parent:
        _die_with_parent()
    settings_or_exit()
    listening = _listen(options.host, options.port)
    config = uvicorn.Config(
        "api.app:create_app",  # by name: it is imported once the port is ours
        factory=True,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with listening, contextlib.suppress(KeyboardInterrupt):
        Server(config, options.port_file).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that say they are TCP; without it each answer waits 40 ms for an ACK
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sys.exit(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}")
    return listening


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the Graft API. Settings come from GRAFT_….")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and tells which (default: %(default)s)")
    parser.add_argument("--port-file", type=Path, help="file to write the port to, once it answers")
    parser.add_argument("--with-parent", action="store_true", help="stop when the process that started this one is gone")
    return parser


def _die_with_parent() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the signal was asked for
        sys.exit("the parent process is gone")


if __name__ == "__main__":
    main()
