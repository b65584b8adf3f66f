"""Quote the code in the README: `python docs/quote.py` fills its marked blocks (a test keeps them so)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic_core import PydanticUndefined

from client.terminal import EXITS
from core.events import KINDS
from store.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def settings() -> str:
    """Every setting with its default."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (PydanticUndefined, None, "", []) else str(field.default)
        default = {"True": "true", "False": "false"}.get(default, default.strip("[]'").replace("', '", ","))
        rows.append((f"`GRAFT_{name.upper()}`", f"`{default}`" if default else "", field.description or ""))
    return table(("variable", "default", "what it is"), rows)


def exits() -> str:
    """The exit statuses of the command."""
    return table(("status", "meaning"), [(str(code.value), meaning) for code, meaning in EXITS.items()])


def events() -> str:
    """The kinds of events, with what they carry."""
    rows = []
    for kind, data in KINDS.items():
        keys = ", ".join(f"`{name}`" for name in data.model_fields)
        rows.append((f"`{kind}`", keys, (data.__doc__ or "").split("\n")[0]))
    return table(("kind", "data", "what happened"), rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


QUOTES: dict[str, Callable[[], str]] = {"settings": settings, "exits": exits, "events": events}


def filled(text: str) -> str:
    """`text` with each marked block replaced by what the code says now."""
    marked = re.compile(r"<!-- quoted: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return marked.sub(lambda found: f"<!-- quoted: {found[1]} -->\n{QUOTES[found[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
