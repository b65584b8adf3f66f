"""What a spec may name: datasets, models, augmentations, losses, optimizers, schedules, each with its keywords."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api import plans, problems, schemas
from api.answers import JsonResponse
from api.dependencies import Svc

router = APIRouter(tags=["service"])
_NAMED = ("pretrained", "augmentations", "losses", "optimizers", "schedules")
_NEAREST = 10
Containing = Annotated[
    str | None,
    Query(
        max_length=100,
        description="Only names that contain this, upper or lower case; where none does, those that come closest.",
        examples=["efficientnet"],
    ),
]


@router.get("/catalog", summary="What a spec may name", response_model=schemas.Catalog, responses=problems.responses())
async def get_catalog(request: Request, service: Svc, q: Containing = None) -> Response:
    """Datasets, models, augmentations, losses, optimizers and schedules by name, with the keywords of each."""
    state = request.app.state
    if not hasattr(state, "catalog"):  # it is a function of what is installed: asked for once
        state.catalog = await plans.ask(service, "core.catalog:catalog_request", {"places": service.settings.places()})
    return JsonResponse(_containing(state.catalog, q.lower()) if q else state.catalog)


def _containing(catalog: dict[str, Any], part: str) -> dict[str, Any]:
    """The catalog, less every name without `part` in it; where that is all of them, less those that are not much like it."""
    found = _kept(catalog, lambda name: part in name.lower())
    if _names(found):
        return found
    near = set(difflib.get_close_matches(part, {_folded(name) for name in _names(catalog)}, n=_NEAREST))
    return _kept(catalog, lambda name: _folded(name) in near)


def _kept(catalog: dict[str, Any], wanted: Callable[[str], bool]) -> dict[str, Any]:
    datasets = {scheme: [name for name in names if wanted(name)] for scheme, names in catalog["datasets"].items()}
    models = [name for name in catalog["models"] if wanted(name)]
    named = {kind: {name: entry for name, entry in catalog[kind].items() if wanted(name)} for kind in _NAMED}
    return {"datasets": datasets, "models": models, **named}


def _names(catalog: dict[str, Any]) -> list[str]:
    datasets = [name for names in catalog["datasets"].values() for name in names]
    return [*datasets, *catalog["models"], *(name for kind in _NAMED for name in catalog[kind])]


def _folded(name: str) -> str:
    """What a person would type of it: without its library."""
    return name.rpartition(":")[2].lower()
