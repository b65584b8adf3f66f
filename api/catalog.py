"""What a spec may name: datasets, models, losses, optimizers, schedules, each with its keywords."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from api import plans, problems, schemas
from api.answers import JsonResponse
from api.dependencies import Svc

router = APIRouter(tags=["service"])


@router.get("/catalog", summary="What a spec may name", response_model=schemas.Catalog, responses=problems.responses())
async def get_catalog(request: Request, service: Svc) -> Response:
    """Datasets, models, losses, optimizers and schedules by name, with the keywords of each."""
    state = request.app.state
    if not hasattr(state, "catalog"):  # it is a function of what is installed: asked for once
        state.catalog = orjson.dumps(
            await plans.ask(service, "core.catalog:catalog_request", {"places": service.settings.places()})
        )
    return JsonResponse(state.catalog)
