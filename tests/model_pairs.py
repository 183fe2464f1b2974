"""Pairs of models that share a vocabulary of 130 words. The 97 words of the zoo are too few to compare models."""

from functools import cache

import torch
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from embspace_lens import EmbeddingLens

D_VOCAB = 130


def word_tokenizer(pieces):
    """A tokenizer of whole words; ids in the order of the words."""
    vocabulary = {"<unk>": 0, "<|endoftext|>": 1} | {piece: i for i, piece in enumerate(pieces, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<|endoftext|>"
    )


def build(family, seed=0, edit=None, d_vocab=D_VOCAB, **config):
    """A random Hugging Face model; the same for the same family, seed and configuration."""
    config_class, model_class, defaults = zoo._TABLE[family]
    settings = defaults | {"vocab_size": d_vocab} | config
    return zoo._build(f"{family}{seed or ''}", config_class, model_class, settings, edit)


def boot(hf_model, pieces=None, name="zoo"):
    """A TransformerBridge around a model of D_VOCAB words."""
    tokenizer = word_tokenizer(pieces or [f"w{i}" for i in range(2, hf_model.config.vocab_size)])
    return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu").eval()


@cache
def booted(family, seed, config):
    return boot(build(family, seed, **dict(config)))


def lens_of(family, seed=0, options=None, **config):
    """A lens of a model that is built once; tests must not change it."""
    return EmbeddingLens(booted(family, seed, tuple(config.items())), **(options or {}))


def plain_norms(model):
    """Set the gains of the norms to 1, so that the residual stream can be rotated."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
