"""The settings as a process takes them at its start: looked through as a whole, each fault under its variable's name.

What is wrong is said once, with the way out, before anything else is begun; the process then ends with `EX_CONFIG`, by which
whoever started it can tell that starting it again is of no use.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

from kombu.transport import TRANSPORT_ALIASES
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError

from store import engines
from store.settings import Settings

EX_CONFIG = os.EX_CONFIG
_NEAR = 0.85
"""From here on a name counts as mistyped: `GRAFT_PLUGIN` does, and Compose's own variables do not."""
_WANTED = {
    "int_parsing": "write a whole number",
    "float_parsing": "write a number",
    "bool_parsing": "write true or false",
    "too_short": "name at least one",
}
_SECRET = ("url", "password", "token")


def settings_or_exit() -> Settings:
    """The settings of this process's environment; where they do not fit, it ends here."""
    mistyped = list(_mistyped(os.environ))
    secrets = os.environ.get("GRAFT_SECRETS_DIR")
    if secrets and not Path(secrets).is_dir():
        refuse([*mistyped, f"GRAFT_SECRETS_DIR={secrets}: there is no such folder"])
    try:
        settings = Settings()
    except ValidationError as error:
        refuse([*mistyped, *(_told(fault) for fault in error.errors())])
    if faults := [*mistyped, *_faults(settings)]:
        refuse(faults)
    return settings


def refuse(faults: Iterable[str]) -> NoReturn:
    """Say what is wrong with the settings, and end this process."""
    sys.stderr.write("".join(["The settings do not fit:\n", *(f"  {fault}\n" for fault in faults)]))
    sys.exit(EX_CONFIG)


def _told(fault: Any) -> str:
    """A fault of pydantic's by its variable; what may be secret is not repeated."""
    name = str(fault["loc"][0]) if fault["loc"] else ""
    variable = f"GRAFT_{name.upper()}"
    value = "" if any(part in name for part in _SECRET) or not isinstance(fault["input"], str) else f"={fault['input']}"
    said = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return f"{variable}{value}: {_WANTED.get(fault['type'], said)}"


def _mistyped(environment: Mapping[str, str]) -> Iterator[str]:
    known = list(Settings.model_fields)
    for variable in sorted(environment):
        name = variable.lower().removeprefix("graft_")
        if not variable.upper().startswith("GRAFT_") or name in known:
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=_NEAR):
            yield f"{variable}: there is no such setting; did you mean GRAFT_{close[0].upper()}?"


def _faults(settings: Settings) -> Iterator[str]:
    """What fits its type and still cannot work."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield f"GRAFT_DATA_DIR={settings.data_dir}: it cannot be used: {error.strerror}"
    for name, folder in ("INPUTS_DIR", settings.inputs_dir), ("PLUGINS_DIR", settings.plugins_dir):
        if folder is not None and not folder.is_dir():
            yield f"GRAFT_{name}={folder}: there is no such folder; make it, or leave this out"
    renew, lease = settings.renew_seconds, settings.lease_seconds
    if renew >= lease:
        yield f"GRAFT_RENEW_SECONDS={renew:g}: leases of {lease:g} s (GRAFT_LEASE_SECONDS) end before; take less"
    try:
        engines.parse(settings.database)
    except ArgumentError:
        yield "GRAFT_DATABASE_URL: this is no URL; write sqlite:///PATH or postgresql://USER@HOST/NAME"
    except ValueError as error:
        yield f"GRAFT_DATABASE_URL: {error}"
    scheme, colon, _ = settings.broker.partition("://")
    if not colon or scheme.partition("+")[0] not in TRANSPORT_ALIASES:
        yield "GRAFT_BROKER_URL: this names no broker; write redis://HOST:6379/0, or leave it out"
    for module in settings.plugins:
        if not _is_there(module, [str(settings.plugin_path), *sys.path]):
            where = f"neither in {settings.plugin_path} (GRAFT_PLUGINS_DIR) nor installed"
            yield f"GRAFT_PLUGINS: there is no module '{module}', {where}"


def _is_there(module: str, path: list[str]) -> bool:
    """Whether a module can be found. Nothing of it is run: only a training process may do that."""
    where: Iterable[str] | None = path
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        found = PathFinder.find_spec(name, None if where is None else list(where))
        if found is None:
            return False
        where = found.submodule_search_locations or []
    return True
