"""Versions and source state that a run records, so that a difference in results can be traced."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from leukocls import __version__

PACKAGE = Path(__file__).parents[1]
PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "kornia", "hydra-core",
    "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, leukocls and the packages that compute."""
    found = {"python": platform.python_version(), "leukocls": __version__}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """Commit of the source and whether files were changed since; None outside a checkout.

    A package that merely lies inside another project's checkout has no commit of its own.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(PACKAGE), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
