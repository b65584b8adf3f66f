"""What core is told of the machine it runs on: where inputs lie and what may be loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.errors import SpecError

READ = (".safetensors", ".pt", ".pth")
"""Endings of the files of weights that are read."""
FETCHED = (*READ, ".bin")
"""Endings of those that may be asked for by URL, or on the hub."""
_KEPT_AS = {**{ending: ending for ending in READ}, ".bin": ".pt", ".tar": ".pth"}
"""What a file that was fetched is kept under: `.bin` and `.pth.tar` are what torch.save wrote, too."""


class PinnedWeights(BaseModel):
    """Pretrained weights as they were found when the job was submitted. What could not be known then is None."""

    model_config = ConfigDict(frozen=True)

    path: Path | None = None
    """Where they lie on this machine: a file, or the directory of a job's checkpoint."""
    file: str | None = None
    """The file's name, for people and for its ending."""
    sha256: str | None = None
    sha256_begins: str = ""
    """What the file's official name says of its hash, where the whole hash is not known."""
    bytes: int | None = None
    stamp: str | None = None
    """The file's (`core.hashes.stamp_of`) when its hash was computed: while it is the same, so is the hash."""
    finite: bool = False
    """Whether the file was looked through, and every number in it is finite."""
    url: str | None = None
    repository: str | None = None
    """`ORG/NAME` on the Hugging Face hub."""
    revision: str | None = None
    """The commit in it."""
    local_name: str | None = None
    """Under this name a copy is looked for below the inputs root and in its folder `weights`, before any download."""
    job: int | None = None
    step: int | None = None
    """Of the job's checkpoint."""

    @property
    def cache_names(self) -> list[str]:
        """The file's names in the cache: by its own hash, where that is known, and by that of its URL."""
        ending = _KEPT_AS.get(Path(self.file or "").suffix, ".safetensors")
        names = [] if self.sha256 is None else [f"{self.sha256}{ending}"]
        return names if self.url is None else [*names, f"url-{hashlib.sha256(self.url.encode()).hexdigest()}{ending}"]


class Places(BaseModel):
    """Roots and permissions. The defaults suit a notebook."""

    model_config = ConfigDict(frozen=True)

    inputs: Path = Path()
    cache: Path = Path.home() / ".cache" / "graft"
    uploads: Path | None = None
    """Below it lie uploaded datasets, each under its number."""
    unreadable: tuple[str, ...] = ()
    """Images of the uploaded dataset at hand that are known not to be readable, by name."""
    plugins: tuple[str, ...] = ()
    plugins_dir: Path | None = None
    download: bool = False
    resident_bytes: int | None = None
    """Decoded images that may be held on the device; None leaves it to `core.data.placing`."""
    image_cache_bytes: int = 64 << 30
    """Decoded images that may be kept on disk."""
    pinned: dict[str, PinnedWeights] = {}
    """Sources of weights by their text in the spec."""

    @property
    def weights_cache(self) -> Path:
        """What was fetched, each file under its `cache_names`. It may be deleted at any time."""
        return self.cache / "weights"

    @property
    def images_cache(self) -> Path:
        """Decoded images (`core.data.image_cache`). It may be deleted at any time."""
        return self.cache / "images"

    def find(self, pinned: PinnedWeights) -> Path | None:
        """The file of weights that was published elsewhere, if it lies here: below the inputs root, fetched, or torch.hub's."""
        candidates = [self.weights_cache / name for name in pinned.cache_names]
        if pinned.local_name is not None:
            beside = (self.inputs, self.inputs / "weights", _torch_hub())
            candidates = [*(folder / pinned.local_name for folder in beside), *candidates]
        return next((path for path in candidates if path.is_file()), None)

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
            raise SpecError.at(pointer, f"'{path}' leaves the inputs directory (GRAFT_INPUTS_DIR); give a path below it")
        if not there:
            raise SpecError.at(pointer, f"'{path}' is not below the inputs directory{_beside(found, root)}")
        return found


def _torch_hub() -> Path:
    """Where torch.hub keeps what a notebook downloaded (torch/hub.py, `get_dir`)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _beside(missing: Path, root: Path) -> str:
    """` (there are: a, b)`: what lies in the folder that was looked in, so that a typing error is seen."""
    folder = missing.parent if missing.parent.is_dir() else root
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    if not names:
        return "; it is empty"
    return f"; there {'is' if len(names) == 1 else 'are'}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
