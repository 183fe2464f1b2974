"""Plots of the package's tables: plotly figures whose titles state what is seen."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
