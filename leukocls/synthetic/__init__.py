"""SYNTHETIC cells whose truth is known: latent parameters, rendering, and a data tree of them."""
