"""What a spec may name: datasets, models, augmentations, losses, optimizers, schedules, each with its keywords."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api import plans, problems, schemas
from api.answers import JsonResponse
from api.dependencies import Svc

router = APIRouter(tags=["service"])
Containing = Annotated[
    str | None, Query(max_length=100, description="Only names that contain this, upper or lower case.", examples=["efficientnet"])
]


@router.get("/catalog", summary="What a spec may name", response_model=schemas.Catalog, responses=problems.responses())
async def get_catalog(request: Request, service: Svc, q: Containing = None) -> Response:
    """Datasets, models, augmentations, losses, optimizers and schedules by name, with the keywords of each."""
    state = request.app.state
    if not hasattr(state, "catalog"):  # it is a function of what is installed: asked for once
        state.catalog = await plans.ask(service, "core.catalog:catalog_request", {"places": service.settings.places()})
    return JsonResponse(_containing(state.catalog, q.lower()) if q else state.catalog)


def _containing(catalog: dict[str, Any], part: str) -> dict[str, Any]:
    """The catalog, less every name without `part` in it."""
    datasets = {scheme: [name for name in names if part in name.lower()] for scheme, names in catalog["datasets"].items()}
    models = [name for name in catalog["models"] if part in name.lower()]
    named = {
        kind: {name: entry for name, entry in catalog[kind].items() if part in name.lower()}
        for kind in ("pretrained", "augmentations", "losses", "optimizers", "schedules")
    }
    return {"datasets": datasets, "models": models, **named}
