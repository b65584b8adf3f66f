"""Read a job spec from JSON or YAML, strictly enough that what was written is what is sent."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml


class SpecFileError(ValueError):
    """A spec file that cannot be read. The message names the file, the place and the way out."""


def read_spec(name: str) -> dict[str, Any]:
    """The spec in the file `name` (`-`: standard input): JSON where it begins with `{`, else YAML.

    Raises SpecFileError, also for a key that is written twice: JSON and YAML readers quietly keep the last.
    """
    shown = "standard input" if name == "-" else name
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecFileError(f"{shown} is no UTF-8 text; a spec is JSON or YAML") from None
    except OSError as error:
        raise SpecFileError(f"{shown} cannot be read: {error.strerror or error}") from None
    try:
        spec = _parse(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise SpecFileError(f"{shown} cannot be read as a spec: {error}") from None
    if not isinstance(spec, dict):
        raise SpecFileError(f"{shown} holds no job spec: it should be an object with at least `dataset` and `model`")
    return spec


def _parse(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except ValueError:
            if not re.match(r"\s*\{\s*\w+\s*:", text):  # YAML in one line: {dataset: {source: sklearn:digits}}
                raise
    return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpecFileError(f"the key '{key}' is there twice in one object; keep one")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema. PyYAML reads 1.1, where `1e-3` is a text, `off` is false and `1:30` is 90."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, but a key that is there twice, or is no text, is an error."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is no text; quote it", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("null", r"^(?:null|Null|NULL|~|)$", "nN~")
_Loader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile(r"^$"))]
_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


# PyYAML's own would read `010` as octal 8, and `1e3` not at all.
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
