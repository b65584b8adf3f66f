"""JSON merge patch (RFC 7386)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEDIA_TYPE = "application/merge-patch+json"


def merged(target: Any, patch: Any) -> Any:
    """`target` as `patch` changes it, in new objects: keys are set, null takes them away, anything but an object replaces."""
    if not isinstance(patch, Mapping):
        return patch
    base = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merged(base.get(key), value)
    return base


def request_body(schema: dict[str, Any], examples: dict[str, Any], *, required: bool, description: str) -> dict[str, Any]:
    """The `requestBody` of OpenAPI for a patch."""
    content = {"schema": schema, "examples": examples}
    media = {MEDIA_TYPE: content, "application/json": content}
    return {"requestBody": {"required": required, "description": description, "content": media}}
