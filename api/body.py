"""Request bodies, read strictly: what is no JSON object of ordinary size is refused here, with a reason, never by a 500."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson
from fastapi import Request

from api.dependencies import service_of
from api.problems import ProblemError


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body. Raises ProblemError: 415 another content type, 413 too large, 400 no JSON object."""
    _must_be_json(request)
    return parse_object(await _read(request, service_of(request).settings.max_body))


async def json_patch(request: Request) -> dict[str, Any]:
    """As `json_object`; no body at all is a patch that changes nothing."""
    body = await _read(request, service_of(request).settings.max_body)
    if not body:
        return {}
    _must_be_json(request)
    return parse_object(body)


def _must_be_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ProblemError(415, "unsupported-media-type", "send JSON, with `Content-Type: application/json`")


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, finite numbers, whole characters, no key twice, nesting that a spec could have."""
    try:
        orjson.loads(body)  # stricter than json: UTF-8 alone, no NaN, no lone surrogates, bounded nesting
        value = json.loads(body, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except RecursionError:
        raise ProblemError(400, "invalid-json", "the body is nested too deep") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4300 digits
        reason = "it is empty" if not body.strip() else str(error)
        raise ProblemError(400, "invalid-json", f"the body is no JSON that can be read: {reason}") from None
    if not isinstance(value, dict):
        raise ProblemError(400, "invalid-json", 'the body must be a JSON object, such as {"dataset": …, "model": …}')
    return value


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ProblemError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ProblemError(413, "too-large", f"a body may have {limit} bytes (GRAFT_MAX_BODY)", headers={"Connection": "close"})


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key '{key[:100]}' is there twice in one object")
        value[key] = item
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
