"""Formats of quantised checkpoints: which tensors hold a weight, and how its values are computed from them."""
