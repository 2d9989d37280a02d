"""Evaluation of predictions on disk: metrics, selection, comparison, audit. No torch."""
