"""Settings: which keys and values a configuration may hold, checked before anything acts on it.

A key that nothing reads is refused, so that a typing mistake never trains another recipe than the
one that was meant. Known are the keys of conf/ and, of an object with a `_target_` and of
Lightning's Trainer, the parameters of its constructor.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts.identity import key_of
from leukocls.common.errors import LeukoclsError
from leukocls.common.secrets import is_secret, without_secrets

PACKAGE = Path(__file__).parents[1]
# Inside an installed package, beside it in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
GROUPS = ("data", "augment", "model", "optim", "trainer", "logger")
# Mappings whose keys are free: timm's options, a rate for each stage of any network, phases.
FREE = {"model.options", "optim.lr", "phases"}
# Numbers for which a word may stand; what reads them checks it.
NUMBER_OR_WORD = {"views", "threshold", "trainer.devices", "data.crop"}
# Names of version 0.1.
RENAMED = {"link": "last_phase", "chain": "phases", "view_0_of": "rescore_from"}
# Other keys by name, and variables of the environment that are leukocls's own. Not what a resolver
# makes: `oc.create` makes objects of text, and those Hydra builds.
INTERPOLATION = re.compile(r"\$\{\s*(?:\.*[\w.]+|oc\.env\s*:\s*LEUKOCLS_\w+\s*(?:,[^${}]*)?)\s*\}")
# What Hydra itself instantiates or acts on, as conf/train.yaml fixes it.
NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
FIXED = {
    "callbacks": {},
    "job.env_set": {},
    "job.env_copy": [],
    "job.chdir": False,
    "output_subdir": None,
    "run.dir": "${private_directory:}",
    "sweep.dir": "${private_directory:}",
    "sweep.subdir": ".",
    "hydra_logging": NO_LOGGING,
    "job_logging": NO_LOGGING,
    "sweeper._target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
LAUNCHERS = {f"hydra_plugins.leukocls.{kind}Launcher" for kind in ("Process", "Slurm", "Local")}
# Options of submitit that a shell runs.
COMMANDS = ("setup", "python", "srun_args", "additional_parameters")


def model_group(name: str) -> dict[str, Any] | None:
    """The configuration group `model` of a name in conf/model; None if there is no such file."""
    if not (CONF / "model" / f"{name}.yaml").is_file():
        return None
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        group: Any = OmegaConf.to_container(compose(overrides=[f"+model={name}"])["model"])
    return group


def check_hydra(node: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse Hydra settings that would run code or write files, whichever file they come from.

    Args:
        node: the composed node `hydra`, before Hydra has acted on it.
        overrides: the command line's.

    Raises:
        LeukoclsError: naming the setting.
    """
    held: Any = OmegaConf.to_container(node, resolve=False)
    _check_interpolations(held, "hydra")
    for path, value in FIXED.items():
        found = held
        for part in path.split("."):
            found = (found or {}).get(part)
        if found != value:
            raise LeukoclsError(
                f"hydra.{path}: fixed by leukocls, because Hydra would run or write what it names;"
                " leave it out of the command and of every configuration file."
            )
    given = [*held["overrides"]["hydra"], *held["overrides"]["task"]]
    if sorted(given) != sorted(overrides):
        raise LeukoclsError("hydra.overrides: only the command line sets it; leave it out.")
    launcher = held["launcher"] or {}
    if launcher.get("_target_") not in LAUNCHERS:
        raise LeukoclsError("hydra/launcher: choose launcher=processes, submitit or slurm instead.")
    if str([launcher, held["sweeper"]]).count("'_target_'") != 2:
        raise LeukoclsError("hydra: a _target_ below the launcher or the sweeper; leave it out.")
    on_command_line = {key_of(override) for override in overrides}
    for name in COMMANDS:
        if launcher.get(name) and f"hydra.launcher.{name}" not in on_command_line:
            raise LeukoclsError(
                f"hydra.launcher.{name}: holds commands for a shell, so a configuration file may"
                " not set it; set it on the command line."
            )


def check_secrets(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse passwords, access tokens and reads of the environment in a configuration.

    Raises:
        LeukoclsError: naming the key, never the value.
    """
    for override in overrides:
        key = key_of(override)
        if is_secret(key):
            raise _secret(key)
        if without_secrets(override) != override:
            raise _secret(key, "its value holds")
    container = OmegaConf.to_container(config, resolve=False)
    _check_interpolations(container, "")
    for key, value in _leaves(container):
        if isinstance(value, str) and without_secrets(value) != value:
            raise _secret(key, "its value holds")


def _check_interpolations(container: Any, path: str) -> None:
    """Refuse a `${…}` that would read the environment or make objects, nested or escaped too."""
    for key, value in _leaves(container, path):
        if not isinstance(value, str) or value in FIXED.values():
            continue
        if "${" in INTERPOLATION.sub("", value):
            raise LeukoclsError(
                f"{key}: only ${{KEY}} and ${{oc.env:LEUKOCLS_NAME}} are available in a"
                f' configuration. Let the shell insert other values: {key}="$NAME"'
            )


def _secret(key: str, which: str = "this is") -> LeukoclsError:
    return LeukoclsError(
        f"{key}: {which} a password or an access token, which a run would write into its files."
        " Leave it out, and set it in the environment of the program that needs it (W&B:"
        " WANDB_API_KEY)."
    )


def check_settings(config: DictConfig) -> None:
    """Refuse keys that nothing reads, deleted keys, and words where a number or true/false belongs.

    Args:
        config: a composed configuration without its node `hydra`.

    Raises:
        LeukoclsError: naming the key, with the known one that is nearest to it.
    """
    container: Any = OmegaConf.to_container(config, resolve=True)
    for key in _unknown(container, known_keys(), ""):
        raise LeukoclsError(no_such_setting(key))
    for key in _deleted(container):
        raise LeukoclsError(f"{key}: cannot be deleted; {key}=null may be what you want.")
    defaults = known_defaults()
    for key, value in _leaves(container):
        if key.endswith("_target_") and value not in defaults.get(key, []):
            from leukocls.training.build import check_target

            check_target(str(value))
        kinds = {type(default) for default in defaults.get(key, [])}
        if value is None or key in NUMBER_OR_WORD:
            continue
        if kinds == {bool} and not isinstance(value, bool):
            raise LeukoclsError(f"{key}={value}: choose true or false.")
        if kinds and kinds <= {int, float} and type(value) not in (int, float):
            raise LeukoclsError(f"{key}={value}: choose a number.")


@cache
def known_keys() -> dict[str, Any]:
    """The keys of conf/train.yaml and its groups, as nested dicts; None where a value stands."""
    tree: dict[str, Any] = {}
    for node in _configurations():
        _merge(tree, node)
    return tree


@cache
def known_defaults() -> dict[str, list[Any]]:
    """Dotted key to the values that files of conf/ give it."""
    defaults: dict[str, list[Any]] = {}
    for node in _configurations():
        for key, value in _leaves(node):
            defaults.setdefault(key, []).append(value)
    return defaults


@cache
def _configurations() -> list[dict[str, Any]]:
    """Every file of conf/ that sets keys of its own, as nested dicts from the root."""
    files: list[tuple[Path, str | None]] = [(CONF / "train.yaml", None)]
    files += [(path, group) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
    nodes = []
    for path, group in files:
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
        own = {key: value for key, value in node.items() if key not in ("defaults", "hydra")}
        nodes.append({group: own} if group else own)
    return nodes


def _merge(tree: dict[str, Any], node: dict[str, Any]) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            tree[key] = tree.get(key) or {}
            _merge(tree[key], value)
        else:
            tree.setdefault(key, None)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its dotted key; each item of a list has the list's key."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, path)
    else:
        yield path, node


def _unknown(node: dict[str, Any], tree: dict[str, Any], path: str) -> Iterator[str]:
    """The dotted keys of `node` that nothing reads."""
    for key, value in node.items():
        here = f"{path}.{key}".lstrip(".")
        if here in FREE:
            continue
        if key not in tree:
            if key not in _parameters(node, path):
                yield here
        elif isinstance(value, dict) and isinstance(tree[key], dict):
            yield from _unknown(value, tree[key], here)
        elif isinstance(value, dict) and "_target_" not in node:
            yield from (f"{here}.{below}" for below in value)


def _parameters(node: dict[str, Any], path: str) -> Collection[str]:
    """Names that the constructor behind a node takes. Imported only here, for it brings torch."""
    if path == "trainer":
        from pytorch_lightning import Trainer

        return inspect.signature(Trainer).parameters
    if "_target_" in node:
        from leukocls.training.build import parameters_of

        return parameters_of(node["_target_"])
    return ()


def _deleted(container: dict[str, Any]) -> Iterator[str]:
    """Keys that every run reads and `~key` took away."""
    train = _configurations()[0]
    for key in (*train, *GROUPS):
        if key not in container:
            yield key
    for group in ("loss", "data", "trainer"):
        for key in known_keys()[group]:
            if key not in container[group]:
                yield f"{group}.{key}"


def is_free(key: str) -> bool:
    """Whether any name may be added below the setting that holds this dotted key."""
    return key.startswith("hydra.") or key.rpartition(".")[0] in FREE


def no_such_setting(key: str) -> str:
    """The message for a key that nothing reads, with the known key that is nearest to it."""
    if is_secret(key):
        return str(_secret(key))
    near = RENAMED.get(key) or _nearest(key)
    if near == key:  # a setting of another recipe's augmentation or network
        return f"{key}: the chosen recipe does not name it. Write +{key}=VALUE."
    advice = f"Did you mean {near}?" if near else "`leukocls train --cfg job` lists all settings."
    return f"{key}: there is no such setting. {advice}"


def _nearest(key: str) -> str | None:
    """The known key that is most like `key`, if one is like it at all."""
    parent, _, name = key.rpartition(".")

    def likeness(known: str) -> float:
        of, _, other = known.rpartition(".")
        ratio = SequenceMatcher(None, name.lower(), other).ratio()
        if other == "".join(word[:1] for word in name.lower().split("_")):
            ratio = 1.0  # lr of learning_rate
        elif min(len(name), len(other)) > 2 and (name in other or other in name):
            ratio = max(ratio, 0.8)
        return ratio + 0.2 * (of == parent)

    best = max(_paths(known_keys()), key=likeness)
    return best if likeness(best) >= 0.75 else None


def _paths(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, below in tree.items():
        here = f"{path}.{key}".lstrip(".")
        yield here
        yield from _paths(below or {}, here)
