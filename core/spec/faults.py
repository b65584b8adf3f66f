"""What is wrong with a spec, and where."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from core.errors import Fault, did_you_mean, pointer_of
from core.spec.job import JobSpec


def faults_of(error: ValidationError, model: type[BaseModel] = JobSpec) -> list[Fault]:
    """Pydantic's errors as faults: a JSON pointer each, and for an unknown key the one that was likely meant.

    Where a value may have one of two types both complain: what is said by the one that it has is kept.
    """
    faults: dict[str, Fault] = {}
    mistyped: dict[str, Fault] = {}
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        pointer, fields = _locate(model, item["loc"], unknown=item["type"] == "extra_forbidden")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key.{did_you_mean(str(item['loc'][-1]), fields)}"
        elif item["type"] == "missing":
            message = "this key is required"
        into = mistyped if item["type"].endswith("_type") or item["type"] == "literal_error" else faults
        into.setdefault(pointer, Fault(pointer, message))
    for pointer, fault in mistyped.items():
        if not any(other.startswith(f"{pointer}/") for other in (*faults, *mistyped)):
            faults.setdefault(pointer, fault)
    return list(faults.values())


def _locate(model: type[BaseModel], loc: tuple[int | str, ...], *, unknown: bool) -> tuple[str, list[str]]:
    """The JSON pointer of a pydantic location (which also names union branches), and the fields beside its last key.

    `unknown`: its last key is none of the model's.
    """
    parts: list[int | str] = []
    here: Any = model
    fields: list[str] = []
    in_list = False  # then an index comes before any key: what is no number is the name of a union branch
    for position, part in enumerate(loc, 1):
        if isinstance(part, int):
            parts.append(part)
            in_list = False
        elif in_list:
            continue
        elif here is dict:
            here, fields = None, []
            parts.append(part)
        elif here is not None and _is_key(here, part, unknown=unknown and position == len(loc)):
            fields = list(here.model_fields)
            annotation = here.model_fields[part].annotation if part in here.model_fields else None
            here, in_list = _inner(annotation), _is_list(annotation)
            parts.append(part)
    return pointer_of(*parts), fields


def _is_key(model: type[BaseModel], part: str, *, unknown: bool) -> bool:
    """Whether this part of a location is a key, not the name of the union branch that `model` is in."""
    return part in model.model_fields or unknown or model.model_config.get("extra") == "allow"


def _is_list(annotation: Any) -> bool:
    """Whether the spec model inside an annotation is that of a list's items."""
    arguments = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is list:
        return _inner(annotation) is not None
    return any(_is_list(argument) for argument in arguments)


def _inner(annotation: Any) -> Any:
    """The spec model inside an annotation such as `list[GroupSpec]` or `PretrainedSpec | None`, or `dict`, if there is one."""
    if getattr(annotation, "__origin__", None) is dict:
        return dict
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner(argument)) is not None:
            return found
    return None
