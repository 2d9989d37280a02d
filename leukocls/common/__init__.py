"""What every package uses: errors and exit codes, whole-file writes, tables as text, processes."""
