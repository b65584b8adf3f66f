"""Quote the code in the docs: `python docs/quote.py` fills their marked blocks (a test keeps them so)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic_core import PydanticUndefined

from client.terminal import EXITS
from core.events import KINDS
from store.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("schedules", "data", "datasets")))


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


def schedules() -> str:
    """Every schedule with its keywords and their defaults."""
    from core.catalog import LENGTHS, default_per, schedule_defaults  # noqa: PLC0415 - torch takes seconds, one page needs it
    from core.optimizer.curves import FORMS  # noqa: PLC0415

    rows = []
    for name in FORMS:
        filled = {LENGTHS.get(name): "what is left", "max_lr": "the group's lr", "epochs": "", "steps_per_epoch": ""}
        keywords = []
        for key, default in schedule_defaults(name).items():
            value = (
                filled.get(key, "required") if default is None else f"{default:.6g}" if isinstance(default, float) else default
            )
            keywords.append(f"`{key}`" + (f" ({value})" if value != "" else ""))
        rows.append((f"`{name}`", default_per(name), ", ".join(keywords)))
    return table(("name", "per", "keywords (defaults)"), rows)


def presets() -> str:
    """What each preset of augmentation does to RGB images, with ImageNet's mean."""
    from core.augmentation import presets  # noqa: PLC0415 - as above
    from core.resolve import IMAGENET  # noqa: PLC0415

    rows = []
    for name in ("light", "strong"):
        for one in presets.listed(name, 224, 3, IMAGENET[0]):
            keywords = ", ".join(f"`{key}` {value}" for key, value in one.keywords.items() if key != "size")
            rows.append((f"`{name}`", f"`{one.name}`", keywords))
    return table(("preset", "operation", "keywords"), rows)


def losses() -> str:
    """Every loss that fits a task, with what it is given as targets."""
    from core.loss.losses import loss_table  # noqa: PLC0415

    tasks = ("multiclass", "multilabel", "regression")
    rows = [(f"`{name}`", *(loss["targets"].get(task, "") for task in tasks))
            for name, loss in loss_table().items() if loss["targets"]]  # fmt: skip
    return table(("loss", *tasks), rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


QUOTES: dict[str, Callable[[], str]] = {
    "settings": settings, "exits": exits, "events": events, "schedules": schedules, "presets": presets, "losses": losses,
}  # fmt: skip


def filled(text: str) -> str:
    """`text` with each marked block replaced by what the code says now."""
    marked = re.compile(r"<!-- quoted: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return marked.sub(lambda found: f"<!-- quoted: {found[1]} -->\n{QUOTES[found[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
