"""A network that misbehaves, by its run's seed, as the variable FAULTS says."""

import os
import signal
import sys
import time

import torch
from torch import nn


class Faulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)
        fault = dict(enumerate(os.environ.get("FAULTS", "").split()))
        fault = fault.get(torch.initial_seed())
        if fault == "exception":
            raise RuntimeError("the lamp is out")
        if fault == "sys.exit":
            sys.exit(0)
        if fault == "os._exit":
            os._exit(3)
        if fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "memory":
            raise MemoryError("no room")
        if fault == "hang":
            print("hanging", flush=True)
            time.sleep(3600)

    def forward(self, images):
        return self.head(images.mean((2, 3)))
