"""TransformerLens's tools, inputs for them, and column order, for the tests of their results."""

import importlib

import pytest
import torch

from embspace_lens.tables.columns import GLOSSARY

CLEAN, CORRUPTED = torch.tensor([[1, 5, 6, 7], [1, 8, 3, 2]]), torch.tensor([[1, 9, 6, 7], [1, 4, 3, 2]])


def logit_difference(logits):
    return logits[:, -1, 5] - logits[:, -1, 9]


def mean_logit_difference(logits):
    return logit_difference(logits).mean()


def in_glossary_order(columns):
    return [name for name in GLOSSARY if name in columns]


def host_module(name):
    """A module of the installed TransformerLens."""
    try:
        return importlib.import_module(f"transformer_lens.{name}")
    except ImportError:
        pytest.skip(f"this TransformerLens has no {name}")
