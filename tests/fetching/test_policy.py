"""Who may be asked: schemes, hosts, addresses, redirects, sizes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fetching.client import Client
from fetching.policy import Policy, RefusedError


def policy(*hosts: str, **values: Any) -> Policy:
    return Policy(**{"download": True, "hosts": hosts, "private": False, "max_bytes": 1000, **values})


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["example.org"], "https://example.org/w.pth"),
        (["example.org"], "https://EXAMPLE.org:443/w.pth"),
        (["example.org:8443"], "https://example.org:8443/w.pth"),
        (["*.example.org"], "https://a.b.example.org/w.pth"),
    ],
)
def test_a_host_of_the_list_may_be_asked(hosts: list[str], url: str) -> None:
    policy(*hosts).check(httpx.URL(url))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/w.pth", "'http' is not allowed"),
        ("ftp://example.org/w.pth", "'ftp' is not allowed"),
        ("https://example.com/w.pth", "'example.com' is not on the operator's list of hosts (GRAFT_DOWNLOAD_HOSTS: "),
        ("https://example.org:8443/w.pth", "'example.org:8443' is not on"),
        ("https://xexample.org/w.pth", "is not on"),
        ("https://below.org/w.pth", "is not on"),
        ("https://example.org.evil.net/w.pth", "is not on"),
        ("https://me:secret@example.org/w.pth", "would be seen by everyone"),
    ],
)
def test_any_other_is_refused_with_the_reason(url: str, said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        policy("example.org", "*.below.org").check(httpx.URL(url))
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_nothing_is_asked_where_downloads_are_off() -> None:
    with pytest.raises(RefusedError, match="GRAFT_DOWNLOAD=true"):
        policy("example.org", download=False).check(httpx.URL("https://example.org/w.pth"))


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "0.0.0.1", "169.254.169.254", "224.0.0.1", "::1",
    "fe80::1", "fd00:ec2::254", "fc00::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:a00:1::",
]  # fmt: skip
NEVER = ["::", "169.254.169.254", "224.0.0.1", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused_in_each_of_its_forms(address: str) -> None:
    with pytest.raises(RefusedError, match="has the address"):
        policy(resolve=lambda _host, _port: ["93.184.216.34", address]).addresses("example.org", 443)


@pytest.mark.parametrize("address", NEVER)
def test_a_mirror_may_be_private_but_never_the_machines_own_metadata(address: str) -> None:
    own = policy(private=True, resolve=lambda _host, _port: [address])
    with pytest.raises(RefusedError, match="never asked"):
        own.addresses("example.org", 443)
    assert policy(private=True, resolve=lambda *_: ["10.0.0.1"]).addresses("mirror", 443) == ["10.0.0.1"]


def test_public_addresses_may_be_asked() -> None:
    found = ["93.184.216.34", "2606:2800:220:1::1"]
    assert policy(resolve=lambda _host, _port: found).addresses("example.org", 443) == found


def test_a_connection_goes_to_the_address_that_was_checked_not_to_what_the_name_means_next(elsewhere: Any) -> None:
    elsewhere.file("/w.pth", b"weights")
    port = elsewhere.host.partition(":")[2]
    meanings = iter([["127.0.0.1"], ["169.254.169.254"]])
    rebinding = policy(f"localhost:{port}", private=True, resolve=lambda _host, _port: next(meanings))
    with Client(rebinding) as client, client.get(elsewhere.url("/w.pth")) as answer:
        assert answer.read() == b"weights"
    with (
        Client(rebinding) as client,
        pytest.raises(RefusedError, match=r"169\.254\.169\.254"),
        client.get(elsewhere.url("/w.pth")),
    ):
        pass


class Judge(Policy):
    """Lets the test's own server through, and judges every other address as the service does."""

    def addresses(self, host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "localhost" else super().addresses(host, port)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("https://169.254.169.254/latest/meta-data", "is not on the operator's list"),
        ("http://{host}/w.pth", "'http' is not allowed"),
        ("https://private.example.org/w.pth", "has the address 10.0.0.1"),
    ],
)
def test_a_redirect_is_checked_as_any_request(elsewhere: Any, to: str, said: str) -> None:
    elsewhere.redirect("/w.pth", to.format(host=elsewhere.host))
    hosts = (elsewhere.host, "*.example.org")
    allowed = Judge(download=True, hosts=hosts, private=False, max_bytes=1000, resolve=lambda *_: ["10.0.0.1"])
    with Client(allowed) as client, pytest.raises(RefusedError) as refused, client.get(elsewhere.url("/w.pth")):
        pass
    assert said in str(refused.value)


def test_redirects_end_somewhere(elsewhere: Any) -> None:
    elsewhere.redirect("/w.pth", elsewhere.url("/w.pth"))
    allowed = policy(elsewhere.host, private=True)
    with Client(allowed) as client, pytest.raises(httpx.TooManyRedirects), client.get(elsewhere.url("/w.pth")):
        pass
    assert len(elsewhere.asked) == 6


def test_a_token_for_the_hub_is_not_passed_on_by_its_redirects(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = elsewhere.host.partition(":")[2]
    elsewhere.file("/w.pth", b"weights")
    elsewhere.redirect("/model", f"https://other.localhost:{port}/w.pth")
    monkeypatch.setenv("HF_ENDPOINT", elsewhere.url(""))
    reached = {"private": True, "resolve": lambda *_: ["127.0.0.1"]}
    allowed = policy(elsewhere.host, f"*.localhost:{port}", token="hf_secret", **reached)  # noqa: S106
    assert "hf_secret" not in repr(allowed)
    with Client(allowed) as client, pytest.raises(httpx.TransportError), client.get(elsewhere.url("/model")):
        pass  # the certificate is not that host's: it was not asked for anything
    with Client(allowed) as client, client.get(elsewhere.url("/w.pth")):
        pass
    assert [headers.get("Authorization") for _, headers in elsewhere.asked] == ["Bearer hf_secret"] * 2


def test_no_proxy_is_taken_from_the_environment(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    elsewhere.file("/w.pth", b"weights")
    with Client(policy(elsewhere.host, private=True)) as client, client.get(elsewhere.url("/w.pth")) as answer:
        assert answer.read() == b"weights"


def test_an_authority_that_is_not_trusted_is_not_believed(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    elsewhere.file("/w.pth", b"weights")
    allowed = policy(elsewhere.host, private=True)
    with Client(allowed) as client, pytest.raises(httpx.TransportError, match="certificate"), client.get(elsewhere.url("/w.pth")):
        pass
