"""JSON as it is sent: one line, and the newline that a terminal needs after it."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi.responses import JSONResponse


class JsonResponse(JSONResponse):
    """An answer, or JSON that is bytes already."""

    def render(self, content: Any) -> bytes:
        """As UTF-8 with a newline at its end."""
        return (content if isinstance(content, bytes) else orjson.dumps(content)) + b"\n"
