"""Archives as people and attackers make them: the `pack` and `pictures` fixtures."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping

import pytest
from PIL import Image

Files = Mapping[str, bytes | None]
"""Content by name; None is a folder."""


def picture(number: int) -> bytes:
    """A PNG of 8 by 8 pixels, another one for each number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 77)).save(file, "PNG")
    return file.getvalue()


def packed(files: Files, kind: str = "tar") -> bytes:
    """An archive: `zip`, `tar`, `tar.gz`, `tar.bz2` or `tar.xz`."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name if content is not None else f"{name}/", content or b"")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode=f"w:{kind.partition('.')[2]}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content or b""), tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


@pytest.fixture(scope="session")
def pack() -> Callable[..., bytes]:
    """`pack({"cats/1.png": content}, "zip")`."""
    return packed


@pytest.fixture(scope="session")
def pictures() -> Callable[..., dict[str, bytes]]:
    """`pictures("cats", "dogs", count=3)`: so many different pictures in each folder; `first` is the number of the first."""

    def make(*folders: str, count: int = 2, first: int = 0) -> dict[str, bytes]:
        names = [f"{folder}/{index}.png".lstrip("/") for folder in folders for index in range(count)]
        return {name: picture(first + number) for number, name in enumerate(names)}

    return make
