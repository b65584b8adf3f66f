"""What is wrong with a spec, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from core.errors import Fault, did_you_mean, pointer_of
from core.spec.homes import meant
from core.spec.job import JobSpec

_PARSED = {"int_parsing": "a whole number", "float_parsing": "a number", "bool_parsing": "true or false"}
"""What is wanted where a text came that does not say it."""
_WORDS = {"missing": "this key is required", "dict_type": "send an object", "list_type": "send a list"}
_SHOWN = 60
"""Letters of a text that are told again."""


class _Place(NamedTuple):
    """Where an error is."""

    pointer: str
    beside: list[str]
    """The fields of the part that its last key is in."""
    field: FieldInfo | None
    """That of its last key, where it has one."""
    wanted: Any
    """The part that is expected there, or `dict`, or None."""


def faults_of(error: ValidationError, model: type[BaseModel] = JobSpec) -> list[Fault]:
    """Pydantic's errors as faults: a JSON pointer each, and for an unknown key where it belongs, or which was likely meant.

    Where a value may have one of two types both complain: what is said by the one that it has is kept.
    """
    faults: dict[str, Fault] = {}
    mistyped: dict[str, Fault] = {}
    for item in error.errors(include_url=False, include_context=False):
        place = _locate(model, item["loc"], unknown=item["type"] == "extra_forbidden")
        into = mistyped if item["type"].endswith("_type") or item["type"] == "literal_error" else faults
        into.setdefault(place.pointer, Fault(place.pointer, _message(item, place, whole=model is JobSpec)))
    for pointer, fault in mistyped.items():
        if not any(other.startswith(f"{pointer}/") for other in (*faults, *mistyped)):
            faults.setdefault(pointer, fault)
    return list(faults.values())


def _message(item: ErrorDetails, place: _Place, *, whole: bool) -> str:
    """What to write instead; pydantic's own words where they say it. `whole`: other parts of a spec stand beside this one."""
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        return f"unknown key.{meant(key, place.beside) if whole else did_you_mean(key, place.beside)}"
    if kind == "model_type" and isinstance(place.wanted, type) and issubclass(place.wanted, BaseModel):
        return _object(place, value)
    if kind in _PARSED and isinstance(value, str):
        return f"send {_PARSED[kind]}, not the text {json.dumps(value[:_SHOWN])}"
    if kind == "string_pattern_mismatch" and place.field is not None and place.field.description:
        return f"this text does not fit. What fits: {place.field.description}"
    return _WORDS.get(kind, item["msg"].removeprefix("Value error, "))


def _object(place: _Place, value: object) -> str:
    """The object to write where something else came: of a text that could be its first key's, that very one."""
    key, field = next(iter(place.wanted.model_fields.items()))
    null = ", or null" if place.field is not None and type(None) in getattr(place.field.annotation, "__args__", ()) else ""
    if isinstance(value, str) and _takes_text(field.annotation):
        return f"send an object: {json.dumps({key: value[:_SHOWN]})}{null}"
    return f"send an object such as {json.dumps({key: _sample(field)})}{null}"


def _sample(field: FieldInfo) -> object:
    """What a field could be given."""
    if field.examples:
        return field.examples[0]
    if get_origin(field.annotation) is Literal:
        return field.annotation.__args__[0]  # type: ignore[union-attr]  # a Literal has what it is one of
    return field.default


def _takes_text(annotation: Any) -> bool:
    return annotation is str or any(_takes_text(argument) for argument in getattr(annotation, "__args__", ()))


def _locate(model: type[BaseModel], loc: tuple[int | str, ...], *, unknown: bool) -> _Place:
    """Where a pydantic location (which also names union branches) leads. `unknown`: its last key is none of the model's."""
    parts: list[int | str] = []
    here: Any = model
    fields: Mapping[str, FieldInfo] = {}
    field: FieldInfo | None = None
    in_list = False  # then an index comes before any key: what is no number is the name of a union branch
    for position, part in enumerate(loc, 1):
        if isinstance(part, int):
            parts.append(part)
            in_list = False
        elif in_list:
            continue
        elif here is dict:
            here, fields, field = None, {}, None
            parts.append(part)
        elif here is not None and _is_key(here, part, unknown=unknown and position == len(loc)):
            fields = here.model_fields
            field = fields.get(part)
            annotation = None if field is None else field.annotation
            here, in_list = _inner(annotation), _is_list(annotation)
            parts.append(part)
    return _Place(pointer_of(*parts), list(fields), field, here)


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
