"""Presentation of results: text tables."""
