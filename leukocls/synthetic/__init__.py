"""Synthetic cells with known truth: specification, latent parameters, rendering, data tree."""
