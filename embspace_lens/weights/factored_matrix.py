"""TransformerLens's factored matrices, in a module of their own, because the import of TransformerLens takes a second."""

from transformer_lens import FactoredMatrix

__all__ = ["FactoredMatrix"]
