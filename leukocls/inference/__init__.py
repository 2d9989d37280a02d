"""Trained networks for others: bundles, and the prediction of images by them."""
