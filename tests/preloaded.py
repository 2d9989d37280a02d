"""Imports and a composed configuration that all commands share, in the server they are forked from.

Composing fills the caches of Hydra, its parser and our settings. No thread may start here: a fork
would lose it.
"""

import gc
from importlib import import_module

import yaml
from hydra import compose, initialize_config_dir

from leukocls.launch.settings import CONF, known_defaults, known_keys
from leukocls.training import PRELOADED

# Imports make no garbage, and what stays of them needs no looking at in any child.
gc.disable()
for name in (
    *PRELOADED, "extra_networks", "leukocls.train", "leukocls.evaluate",
    "leukocls.reporting.tables", "pandas.io.formats.csvs", "pyarrow.dataset", "sklearn.base",
    "torch.utils.serialization",
):  # fmt: skip
    import_module(name)
# As in the processes that run tests.
yaml.SafeLoader = yaml.CSafeLoader
known_keys()
known_defaults()
with initialize_config_dir(str(CONF), version_base="1.3"):
    compose("train", ["experiment=demo", "data=cnmc"], return_hydra_config=True)
gc.freeze()
gc.enable()
