"""Phases: overlays over a recipe, each a run that starts from the weights of the one before."""

import copy
from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leukocls.artifacts.identity import key_of
from leukocls.common.errors import LeukoclsError


def phase_configs(
    config: DictConfig, overrides: Collection[str], groups: Collection[str]
) -> dict[str, DictConfig]:
    """The configuration of each phase by name, in order; empty for a run without phases.

    Each is the recipe, the phase's overlay over it, and the command line over both. The last one is
    `config.last_phase` if that is set.

    Args:
        config: the composed configuration; `phases` maps names to overlays.
        overrides: the command line's, as Hydra takes them.
        groups: names of Hydra's configuration groups, whose choices are in `config` already.

    Raises:
        LeukoclsError: an overlay that cannot be merged with the recipe; no such last phase.
    """
    phases, last = config.phases or {}, config.last_phase
    if last is not None and last not in phases:
        known = f"choose one of {', '.join(phases)}" if phases else "leave it out"
        raise LeukoclsError(f"last_phase={last}: this experiment has no such phase; {known}.")
    values = [o for o in overrides if key_of(o) not in groups and not o.startswith("~")]
    configs: dict[str, DictConfig] = {}
    for name, overlay in phases.items():
        if not isinstance(overlay, DictConfig):
            raise LeukoclsError(f"phases.{name}={overlay}: name the settings that it changes.")
        merged = copy.deepcopy(config)
        # An overlay may set what another choice of its group leaves out (augment=none: rotation).
        OmegaConf.set_struct(merged, False)
        try:
            merged.merge_with(overlay)
            for key in map(key_of, values):
                if not key.startswith("phases."):
                    OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=False)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise LeukoclsError(
                f"phases.{name}: does not fit this configuration ({reason}). Choose another model"
                " or recipe, or phases=null to train without phases."
            ) from error
        # What is recorded is one run's configuration, complete in itself.
        merged.phases, merged.last_phase = {}, None
        OmegaConf.set_struct(merged, True)
        configs[str(name)] = merged
        if name == last:
            break
    return configs
