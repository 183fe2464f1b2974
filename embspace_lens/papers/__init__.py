"""The papers' tables and figures, each as one experiment: the published value beside the value measured here, with its control."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
