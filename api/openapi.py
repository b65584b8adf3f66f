"""The OpenAPI page: what the routes cannot say of themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.problems import Problem
from api.schemas import JobPatch
from core.adjustments import TimedPatch
from core.spec import JobSpec

DESCRIPTION = """
Graft trains models of images from pretrained weights: for one class of several, for several labels, or for numbers. Send a job
spec, follow its log, download the weights.

```sh
curl -s localhost:8000/jobs -H 'Content-Type: application/json' \\
     -d '{"dataset": {"source": "sklearn:digits", "image_size": 32}, "model": {"name": "torchvision:resnet18"}}'
curl -N 'localhost:8000/jobs/1/logs?follow=true'
```

- **Errors** are `application/problem+json` (RFC 9457) for every status; `errors[].pointer` names the place, and the message says
  what was likely meant. A body that is no JSON is 400, a spec that cannot work 422.
- **Lists** are `{data, has_more, next}`; send `next` as `after`.
- **Times** are ISO 8601 in UTC. **Ids** are integers. Numbers that JSON cannot carry are the texts `nan`, `inf`, `-inf`.
- **Query parameters** that a call does not have are refused, not ignored.
"""

TAGS = [
    {"name": "plans", "description": "Check a spec and see what it would do, without training."},
    {"name": "jobs", "description": "Submit, list, look at, change and stop jobs."},
    {"name": "log", "description": "Everything that happened to a job, in order, by one cursor: `seq`."},
    {"name": "reports", "description": "The log, put together: losses, the transfer report, the parameter groups."},
    {"name": "checkpoints", "description": "The trained weights and what they are."},
    {"name": "datasets", "description": "Upload class folders of images, and train on them by `upload:ID`."},
    {"name": "service", "description": "What a spec may name, who works, and whether all is well."},
]


def install(app: FastAPI) -> None:
    """Give `app` a schema that also has the job spec as it may be sent, and the problem."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _schema(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components = document["components"]["schemas"]
    components.update(_definitions([JobSpec, JobPatch, TimedPatch, Problem], "validation"))
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    _restore_examples(app, document)
    return document


def _restore_examples(app: FastAPI, document: dict[str, Any]) -> None:
    """Put the examples of request bodies in as they were written: FastAPI leaves out what is null, which in a patch says much."""
    for route in (context.original_route for context in iter_route_contexts(app.routes)):
        if isinstance(route, APIRoute) and route.include_in_schema:
            written = (route.openapi_extra or {}).get("requestBody", {}).get("content", {})
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                for media_type, content in written.items():
                    if "examples" in content:
                        operation["requestBody"]["content"][media_type]["examples"] = content["examples"]


def _definitions(models: list[type[BaseModel]], mode: Any) -> dict[str, Any]:
    _, found = models_json_schema([(model, mode) for model in models], ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = found["$defs"]
    return definitions
