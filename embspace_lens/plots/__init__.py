"""Plots of the package's tables: plotly figures whose titles state what they show."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
