"""What of the owner's environment children may see: an allow-list, so that a secret must be named to get in."""

from __future__ import annotations

import os
import site
from collections.abc import Mapping
from pathlib import Path

_NAMES = frozenset(
    "HOME LANG LANGUAGE LD_LIBRARY_PATH LOGNAME PATH SSL_CERT_DIR SSL_CERT_FILE TMPDIR TZ USER XDG_CACHE_HOME".split()  # noqa: SIM905
)
_PREFIXES = ("CUBLAS_", "CUDA_", "CUDNN_", "GOMP_", "KMP_", "LC_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy"})


def clean(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The part of `environment` that is about the machine, and the import path of this package."""
    kept = {name: value for name, value in environment.items() if _allowed(name, value)}
    # numpy's own BLAS would start threads at import, and a process that forks must have none. torch has another pool.
    kept["OPENBLAS_NUM_THREADS"] = "1"
    if path := _import_path(environment.get("PYTHONPATH", "")):
        kept["PYTHONPATH"] = path
    return kept


def _allowed(name: str, value: str) -> bool:
    if name.lower() in _PROXIES:
        return "@" not in value  # user:password@host
    return name in _NAMES or name.startswith(_PREFIXES)


def _import_path(inherited: str) -> str:
    """This package's folder first, unless it is installed: there the interpreter looks by itself, after its own library."""
    root = str(Path(__file__).resolve().parent.parent)
    parts = [part for part in inherited.split(os.pathsep) if part]
    return os.pathsep.join(parts if root in site.getsitepackages() else dict.fromkeys([root, *parts]))
