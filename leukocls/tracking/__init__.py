"""W&B shows run directories: a process of its own reads their files, live or afterwards.

Training never imports wandb. This module is read before wandb is: its telemetry would otherwise be
sent, for up to 30 s, before Python ends.
"""

import os

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
