"""The site of a dictionary of transformer factors: static pages that open from disk."""

from ...site.pages import explore

__all__ = ["explore"]
