"""A composition that fills the caches of Hydra, its parser and our settings, once for all commands.

The server that they are forked from imports this. No thread may start: a fork would lose it.
"""

import yaml
from hydra import compose, initialize_config_dir

from leukocls.launch.settings import CONF, known_defaults, known_keys

# As in the processes that run tests.
yaml.SafeLoader = yaml.CSafeLoader
known_keys()
known_defaults()
with initialize_config_dir(str(CONF), version_base="1.3"):
    compose("train", ["experiment=demo", "data=cnmc"], return_hydra_config=True)
