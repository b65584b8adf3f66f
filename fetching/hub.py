"""The Hugging Face hub: which file of a repository is meant, at which commit, and what its hash is.

One request of its documented API (https://huggingface.co/docs/hub/api), under the same policy as every other; the hub's own
client library brings an HTTP stack of its own, which would ask whom it likes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from core.errors import did_you_mean
from core.places import FETCHED, PinnedWeights
from fetching.client import Client, hub
from fetching.policy import RefusedError

_USUAL = ("model.safetensors", "pytorch_model.bin")
_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?")
_MOST = 16 << 20


@dataclass(frozen=True)
class HubName:
    """`hf:ORG/REPO[/FILE][@REVISION]`, taken apart. Without a file the usual one is meant, without a revision the newest."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def local_name(self, file: str) -> str:
        """Where below the inputs a copy of one of its files may lie."""
        return f"{self.repository}/{file}"


def parse(source: str) -> HubName:
    """Raises RefusedError where it has another form."""
    found = _SOURCE.fullmatch(source)
    if found is None or any(part in {"", ".", ".."} for part in source[3:].partition("@")[0].split("/")):
        raise RefusedError(f"'{source}' names nothing on the hub; write hf:ORG/REPO, hf:ORG/REPO/FILE or hf:ORG/REPO@REVISION")
    name = HubName(found[1], found[2], found[3])
    if name.file is not None and not name.file.endswith(FETCHED):
        raise RefusedError(f"'{name.file}' is no file of weights; those end in {', '.join(FETCHED)}")
    return name


def look_up(name: HubName, client: Client) -> PinnedWeights:
    """The file as it is now: its commit, hash, size and URL. Raises RefusedError with what there is instead."""
    info = _ask(name, client)
    there = {str(one["rfilename"]): one for one in info.get("siblings", ())}
    file = name.file or _usual(name, there)
    if file not in there:
        weights = [one for one in there if one.endswith(FETCHED)]
        raise RefusedError(f"{name.repository} has no file '{file}'.{did_you_mean(file, weights)}")
    commit = str(info["sha"])
    stored = there[file].get("lfs") or {}
    return PinnedWeights(
        file=file.rpartition("/")[2],
        sha256=stored.get("sha256"),
        bytes=stored.get("size") or there[file].get("size"),
        url=f"{hub()}/{name.repository}/resolve/{commit}/{quote(file)}",
        repository=name.repository,
        revision=commit,
    )


def _usual(name: HubName, there: Mapping[str, Any]) -> str:
    for usual in _USUAL:
        if usual in there:
            return usual
    top = [one for one in there if one.endswith(FETCHED) and "/" not in one]
    safe = [one for one in top if one.endswith(".safetensors")]
    if len(safe or top) == 1:
        return (safe or top)[0]
    if not top:
        raise RefusedError(f"{name.repository} has no file of weights at its top ({', '.join(FETCHED)})")
    listed = ", ".join((safe or top)[:8])
    raise RefusedError(
        f"{name.repository} has more than one file of weights ({listed}): name one, as hf:{name.repository}/{(safe or top)[0]}; "
        "a model in several pieces has to be put into one file"
    )


def _ask(name: HubName, client: Client) -> dict[str, Any]:
    revision = f"/revision/{quote(name.revision, safe='')}" if name.revision else ""
    try:
        with client.get(f"{hub()}/api/models/{name.repository}{revision}?blobs=true") as answer:
            if answer.status_code != httpx.codes.OK:
                raise RefusedError(_why(name, answer))
            body = bytearray()
            for piece in answer.iter_raw():
                body += piece
                if len(body) > _MOST:
                    raise RefusedError(f"what the hub says of {name.repository} is too long")
            found: dict[str, Any] = orjson.loads(body)
            return found
    except (httpx.HTTPError, ValueError) as error:
        raise RefusedError(f"the hub cannot be asked for {name.repository}: {error}") from error


def _why(name: HubName, answer: httpx.Response) -> str:
    """The hub's refusal (its own words are in a header)."""
    said = answer.headers.get("x-error-message", "")
    code = answer.headers.get("x-error-code", "")
    if code == "RevisionNotFound":
        return f"{name.repository} has no revision '{name.revision}'"
    if answer.status_code in {401, 403, 404}:
        return (
            f"the hub shows no repository {name.repository}{f' ({said})' if said else ''}; "
            "a private or gated one needs the operator's token (GRAFT_HF_TOKEN, for the api and the workers)"
        )
    return f"the hub answered {answer.status_code} for {name.repository}{f' ({said})' if said else ''}"
