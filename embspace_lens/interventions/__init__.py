"""Interventions and their results: hooks made from tables, TransformerLens's results as tables, rank correlations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
