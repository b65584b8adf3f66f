"""From where files may come: https, hosts on the operator's list, public addresses.

A name is resolved once, every address that it has is checked, and the connection is made to a checked address: what the name
resolves to a moment later does not matter. A redirect is one more request, and checked as one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_HTTPS = 443
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedError(Exception):
    """This may not be fetched. The message says why, and which setting would allow it."""


def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system's resolver has them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Policy:
    """What the operator allows. `hosts` are `NAME`, `NAME:PORT`, or `*.NAME` for what lies below a name."""

    download: bool
    hosts: tuple[str, ...]
    private: bool
    max_bytes: int
    token: str | None = field(default=None, repr=False)
    """Opens private repositories of the Hugging Face hub; sent to the hub alone."""
    min_rate: float = 0.0
    """Bytes a second; an answer that comes more slowly over `rate_seconds` is cut."""
    rate_seconds: float = 60.0
    resolve: Callable[[str, int], list[str]] = addresses_of

    def check(self, url: httpx.URL) -> None:
        """Raises RefusedError for a URL that may not be asked, as far as that can be told without a network."""
        if not self.download:
            raise RefusedError(
                "downloads are off; let the operator set GRAFT_DOWNLOAD=true, or put the file into the inputs directory"
            )
        if url.scheme != "https":
            raise RefusedError(f"'{url.scheme}' is not allowed; only https is")
        if url.userinfo:
            raise RefusedError("a URL with a user or a password in it would be seen by everyone; leave them out")
        if not any(_names(entry, url.host, url.port or _HTTPS) for entry in self.hosts):
            place = url.host if url.port is None else f"{url.host}:{url.port}"
            raise RefusedError(
                f"'{place}' is not on the operator's list of hosts (GRAFT_DOWNLOAD_HOSTS: {', '.join(self.hosts) or 'empty'})"
            )

    def check_size(self, size: int) -> None:
        """Raises RefusedError for a file that is too large."""
        if size > self.max_bytes:
            raise RefusedError(f"it has {size} bytes, and at most {self.max_bytes} are allowed (GRAFT_DOWNLOAD_MAX_BYTES)")

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to connect to, every one of them checked. Raises RefusedError, OSError."""
        found = self.resolve(host, port)
        for text in found:
            if (reason := self._why_not(ipaddress.ip_address(text))) is not None:
                raise RefusedError(f"'{host}' has the address {text}, which is {reason}")
        return found

    def _why_not(self, address: Address) -> str | None:
        for one in _unwrapped(address):
            if one.is_link_local or one.is_multicast or one.is_unspecified or one == ipaddress.ip_address("fd00:ec2::254"):
                return "never asked: link-local addresses serve a machine's own metadata and secrets"
            if not one.is_global and not self.private:
                return "not public; a mirror in your own network is allowed by GRAFT_DOWNLOAD_PRIVATE=true"
        return None


def _names(entry: str, host: str, port: int) -> bool:
    """Whether an entry of the list means this host and port; without a port it means that of https."""
    name, colon, number = entry.lower().rpartition(":") if not entry.endswith("]") else (entry.lower(), "", "")
    if not colon:
        name, number = entry.lower(), str(_HTTPS)
    if number != str(port):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name.strip("[]")


def _unwrapped(address: Address) -> list[Address]:
    """The address, and the IPv4 address that it carries, if it is one of IPv6's ways to say one."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inside = address.ipv4_mapped or address.sixtofour
    if inside is None and address.teredo is not None:
        inside = address.teredo[1]
    if inside is None and address in _NAT64:
        inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    return [address] if inside is None else [address, inside]
