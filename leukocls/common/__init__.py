"""Shared by every package: errors and exit codes, atomic writes, text tables, processes."""
