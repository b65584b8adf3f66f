"""The keywords of a constructor: their defaults, and whether what a spec gives for them fits its signature."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor

from core.errors import Fault, pointer_of
from core.spec import meant


def check_keywords(
    target: Callable[..., Any],
    keywords: Mapping[str, Any],
    pointer: str,
    *,
    refused: Mapping[str, str] = {},
    more: Collection[str] = (),
    ours: Collection[str] = (),
    open_ended: bool = False,
) -> list[Fault]:
    """The faults of `keywords` as keywords of `target`, by its signature and its annotations.

    `refused` are keywords that are ours to set, with the reason; `more` are known beside the signature; `ours` are the keys
    of the spec that stand beside them, and may have been meant; `open_ended` lets unknown ones through where the signature
    has `**kwargs`.
    """
    parameters = inspect.signature(target).parameters
    named = [key for key, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    known = [*(key for key in named if key not in refused), *more]
    lets_through = open_ended and any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    hints = _hints(target)
    faults = []
    for key, value in keywords.items():
        here = pointer + pointer_of(key)
        if key in refused:
            faults.append(Fault(here, refused[key]))
        elif key in known:
            faults += [Fault(here, message) for message in [_misfit(hints.get(key), value)] if message]
        elif not lets_through:
            name = getattr(target, "__name__", "it")
            takes = meant(key, [*known, *ours], pointer) or f" {name} takes none."
            faults.append(Fault(here, f"unknown keyword of {name}.{takes}"))
    return faults


def keyword_defaults(target: Callable[..., Any], without: Collection[str]) -> dict[str, Any]:
    """The keywords of `target` with their defaults, as JSON has them; null also for those without one."""
    found = {}
    for key, one in inspect.signature(target).parameters.items():
        if key not in without and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD):
            default = None if one.default is one.empty else one.default
            found[key] = list(default) if isinstance(default, tuple) else default
    return found


def tensor_keywords(target: Callable[..., Any]) -> set[str]:
    """The keywords that take tensors."""
    return {key for key, hint in _hints(target).items() if _is_tensor(hint)}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved; none where they name what cannot be found."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # evaluating annotations runs a person's own text
        return {}


def _is_tensor(hint: Any) -> bool:
    return hint is Tensor or Tensor in getattr(hint, "__args__", ())


def _misfit(hint: Any, value: Any) -> str | None:
    """Why `value` does not fit the annotation, read strictly as JSON (a list may be a tuple, an int a float)."""
    if hint is None or hint is Any:
        return None
    if _is_tensor(hint) and isinstance(value, list):
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        return None if numbers else "expects a list of numbers"
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return f"expects {_shown(hint)}, got {_told(hint, value)}"
    except (PydanticUserError, TypeError, NameError):  # an annotation that is no type
        return None
    return None


def _told(hint: Any, value: Any) -> str:
    """The value; and of a text that says what would fit, that it is a text."""
    written = json.dumps(value)
    try:
        said = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return written
    fits = said is not value and _misfit(hint, said) is None
    return f"the text {written}: leave its quotes out" if fits else written


def _shown(hint: Any) -> str:
    text = inspect.formatannotation(hint).replace("typing.", "").replace("collections.abc.", "")
    if hint is Tensor or text in {"torch.Tensor | None", "Optional[torch.Tensor]"}:
        return "a list of numbers"
    return text.replace(" | torch.Tensor", "").replace("torch.Tensor | ", "")
