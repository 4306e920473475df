"""Whole studies in one call: from a diffusion model, images and classifiers to numbers and figures."""
