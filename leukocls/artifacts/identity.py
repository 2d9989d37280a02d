"""Run identity: the settings and input digests that decide a result, and the name made of them."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Keys that change where files lie, what is displayed or how fast a run goes, never its result.
NEUTRAL = {
    "outputs", "logger", "launcher", "jobs", "jobs_per_gpu", "time_limit", "plan", "force",
    "resume", "checkpoint",
    "data.root", "data.layout", "data.cache", "data.partial", "data.outside", "data.workers",
    "data.residence",
    "save_every", "save_minutes", "trainer.enable_progress_bar",
}  # fmt: skip
# Weights to start from: identified by their digest among the inputs, not by their path.
BY_CONTENT = {"continue_from", "model.weights"}
# Keys that are in the directory's path already.
IN_PATH = {"ablation", "seed", "experiment", "score", "last_phase"}
# The overlays of a run's phases are merged into its other settings.
MERGED = {"phases", "last_phase"}
# The experiment of classifiers on simple features: fitted once, they have no seeds.
BASELINE = "baseline"
HEAD = 70  # characters that a name which is cut keeps


def arm_name(
    ablation: str,
    overrides: Iterable[str],
    swept: Collection[str] = (),
    existing: Iterable[str] = (),
) -> str:
    """Directory name of an arm: the ablation, then every override that changes the result.

    Overrides take Hydra's `override_dirname` form. Two different lists never give one name: a hash
    distinguishes names in which characters were replaced or cut.

    Args:
        swept: keys that a sweep varies; they come first in a name that is cut.
        existing: names that are there already. An arm whose name is cut keeps the one that an
            earlier command gave it.
    """
    kept = sorted(o for o in overrides if not is_neutral(key_of(o)))
    full, safe = _joined(ablation, kept)
    if safe == full and len(safe) <= 80:
        return safe
    end = f"-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    if len(safe) > HEAD:
        _, safe = _joined(ablation, sorted(kept, key=lambda o: key_of(o) not in swept))
        safe = next((name for name in existing if name.endswith(end)), safe)
    return safe[:HEAD] + end


def _joined(ablation: str, overrides: list[str]) -> tuple[str, str]:
    """An arm's full name, and the same with only such characters as suit the name of a file."""
    full = ",".join([ablation, *overrides])
    return full, re.sub(r"[^A-Za-z0-9._=,+-]", "-", full)


def name_parts(name: str) -> tuple[str, dict[str, str]]:
    """The ablation and the overrides in a name that `arm_name` made, as far as they can be read.

    A name with a hash keeps it beside the ablation; one that was cut loses its last override.
    """
    hashed = re.fullmatch("(.+)-([0-9a-f]{8})", name)
    parts = (hashed[1] if hashed else name).split(",")
    if hashed and len(hashed[1]) == HEAD and len(parts) > 1:
        parts.pop()
    overrides: dict[str, str] = {}
    while len(parts) > 1 and "=" in parts[-1]:
        key, _, value = parts.pop().partition("=")
        overrides[key] = value
    head = ",".join(parts) + (f"…{hashed[2]}" if hashed else "")
    return head, dict(reversed(overrides.items()))


def key_of(override: str) -> str:
    """The key that a Hydra override sets, adds or deletes."""
    return override.split("=")[0].lstrip("+~")


def is_neutral(key: str) -> bool:
    """True for a key that the arm's name leaves out: it changes no result, or is in the path."""
    return key in IN_PATH or any(key == k or key.startswith(f"{k}.") for k in NEUTRAL)


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The configuration keys that decide a result, flat, by dotted key."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        elif prefix in IN_PATH or not (is_neutral(prefix) or prefix in BY_CONTENT):
            flat[prefix] = node

    container: Any = OmegaConf.to_container(config, resolve=True)
    walk({key: value for key, value in container.items() if key not in MERGED}, "")
    return flat


def config_hash(settings: dict[str, Any], inputs: dict[str, str | None]) -> str:
    """sha256 of the sorted JSON of a run's settings and input digests."""
    return hashlib.sha256(json.dumps([settings, inputs], sort_keys=True).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys in which two records' identities differ, with both values, sorted.

    Args:
        before, now: records, or any dicts with `identity` (settings) and `inputs` (digests), which
            appear as `inputs.<name>`.
    """
    a, b = (
        {**one["identity"], **{f"inputs.{name}": sha for name, sha in one["inputs"].items()}}
        for one in (before, now)
    )
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return {key: (a.get(key), b.get(key)) for key in keys}
