"""Slots of a sweep: how many jobs run at a time, and which GPUs each of them sees."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from omegaconf import DictConfig

from leukocls.common.errors import LeukoclsError


def slots(configs: Sequence[DictConfig]) -> list[str | None]:
    """One entry for each job that runs at a time: its CUDA_VISIBLE_DEVICES, or None to leave it.

    Raises:
        LeukoclsError: a number out of range, options that must be equal and differ, too few GPUs.
    """
    config = configs[0]
    for name, kind in (("jobs", int), ("jobs_per_gpu", int), ("time_limit", int | float)):
        value = config[name]
        if value is not None and not (isinstance(value, kind) and value > 0):
            raise LeukoclsError(f"{name}={value}: choose more than 0.")
        if any(other[name] != value for other in configs):
            raise LeukoclsError(f"{name}: must be equal for all jobs of a sweep.")
    for other in configs:
        if not (isinstance(other.threads, int) and other.threads > 0):
            raise LeukoclsError(f"threads={other.threads}: choose a whole number of at least 1.")
        for name in ("devices", "accelerator"):
            if other.trainer[name] != config.trainer[name]:
                raise LeukoclsError(f"trainer.{name}: must be equal for all jobs of a sweep.")
    devices, shared = config.trainer.devices, config.jobs_per_gpu
    each = devices if isinstance(devices, int) and devices > 0 else None
    gpus = visible_gpus() if config.trainer.accelerator in ("auto", "gpu", "cuda") else []
    found: list[str | None]
    if gpus and each:
        groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)]
        found = [",".join(group) for _ in range(shared) for group in groups]
    elif gpus:  # a job takes all GPUs, or names its own
        found = [None] * shared
    else:
        threads = max(other.threads for other in configs) * (each or 1)
        found = [None] * max(1, len(os.sched_getaffinity(0)) // threads)
    if not found:
        raise LeukoclsError(f"trainer.devices={devices}: only {len(gpus)} GPUs are visible here.")
    return [found[i % len(found)] for i in range(config.jobs or len(found))]


def visible_gpus() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them; CUDA itself is not touched."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return listed.stdout.split()
    return []
