"""Checkpoints: the parameters of a model on disk or behind a network, read one by one when they are needed."""
