"""Perceptual MAE (arXiv 2212.14504): self-supervised vision pretraining as a pipeline."""
