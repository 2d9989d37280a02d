"""From one command to processes: runs, phases of a run, and sweeps over many runs."""
