"""The site of a dictionary of transformer factors: static pages that open from disk."""

from .explore import explore

__all__ = ["explore"]
