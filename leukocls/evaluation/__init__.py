"""From predictions on disk to numbers: metrics, selection, comparison, audit. No torch."""
