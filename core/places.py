"""What core is told of the machine it runs on: where inputs lie and what may be loaded."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.errors import SpecError


class PinnedWeights(BaseModel):
    """Weights of an earlier job, as they were found when this one was submitted."""

    model_config = ConfigDict(frozen=True)
    path: Path
    sha256: str
    step: int


class Places(BaseModel):
    """Roots and permissions. The defaults suit a notebook."""

    model_config = ConfigDict(frozen=True)

    inputs: Path = Path()
    cache: Path = Path.home() / ".cache" / "graft"
    plugins: tuple[str, ...] = ()
    plugins_dir: Path | None = None
    download: bool = False
    resident_bytes: int = 4 << 30
    pinned: dict[str, PinnedWeights] = {}
    """`job:ID` sources by their text in the spec."""

    def input(self, path: str, pointer: str) -> Path:
        """The file or folder at `path`, which is relative to the inputs root and may not leave it (links resolved).

        Raises SpecError at `pointer` where it leaves the root or is not there.
        """
        root = self.inputs.resolve()
        try:
            found = (root / path).resolve()
            inside = found.is_relative_to(root)
            there = inside and found.exists()
        except (OSError, ValueError) as error:
            raise SpecError.at(pointer, f"'{path}' is no usable path: {error}") from None
        if not inside:
            raise SpecError.at(pointer, f"'{path}' leaves the inputs directory; give a path below it")
        if not there:
            raise SpecError.at(pointer, f"'{path}' is not below the inputs directory{_beside(found, root)}")
        return found


def _beside(missing: Path, root: Path) -> str:
    """` (there are: a, b)`: what lies in the folder that was looked in, so that a typing error is seen."""
    folder = missing.parent if missing.parent.is_dir() else root
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    if not names:
        return "; it is empty"
    return f"; there {'is' if len(names) == 1 else 'are'}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
