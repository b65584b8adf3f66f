"""What torch.compile needs of a machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from core.errors import Fault
from core.spec.training import TrainingSpec


def check(spec: TrainingSpec) -> Iterator[Fault]:
    """Whether a model can be compiled here, where that is asked for.

    The compiler is TorchInductor's: `CXX`, or else g++ (torch/_inductor/config.py, `cpp.cxx`); its kernels for a GPU need gcc,
    which g++ brings.
    """
    compiler = os.environ.get("CXX", "g++")
    if spec.compile and shutil.which(compiler) is None:
        yield Fault(
            "/training/compile",
            f"torch.compile needs a C++ compiler, and there is no {compiler} here; "
            "install g++ on the hosts of the api and the workers, or set this to false",
        )
