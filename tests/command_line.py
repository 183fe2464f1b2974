"""Helpers of the command-line tests: tiny models in folders, and checks of results."""

import csv
import io
import re

import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from embspace_lens.demo.corpus import train_tokenizer

TEXTS = ["the film was a wonderful film and the actors were good", "a bad film that nobody wants to watch twice"]

# Tokens that break a file format, a terminal or a page if they are not quoted or escaped.
HOSTILE = ["<script>alert(1)</script>", 'say "hi", a;b', "שלום", "👩‍👧", "line\nbreak", "tab\there", "NA", "\r", "' x"]


def save_model(folder, texts=TEXTS, *, n_layers=2, n_tokens=300, extra_tokens=()):
    """Write a tiny GPT-2 and its tokenizer, and return the folder's name."""
    tokenizer = train_tokenizer(texts * 20, n_tokens)
    tokenizer.add_tokens(list(extra_tokens))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=n_layers, n_head=4)
        config.architectures = ["GPT2LMHeadModel"]
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def check_refusal(result, pattern):
    """Check that standard error contains only the message, standard output is empty, and the exit code is 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(pattern + r"\n", result.stderr), result.stderr


def read_csv(result):
    """The table of a result in CSV."""
    assert result.exit_code == 0, result.output
    return pd.read_csv(io.StringIO(result.stdout), keep_default_na=False, na_values=[""])


def as_csv(df):
    """A table as the command line writes it in CSV."""
    return df.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
