"""The files that a run leaves, and how each is read and written. Nothing here imports torch."""
