"""What the experiments of Yun et al. share: a model with its dictionary, chunks of text, their top contexts, and tagged sentences."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import errors
from ..demo import catalog
from ..factors.contexts import Activity, activity
from ..factors.dictionary import Factors
from ..factors.pretrained import demo_factors
from ..factors.training import fit_factors
from ..factors.word_occurrences import Sentence
from ..files import make_folder, whole
from ..forward.sampling import sample_texts
from ..forward.texts import read_texts
from ..loading import load_model
from ..weights.configuration import n_layers
from .data_files import TEST, data_file, find_file
from .experiment import Setting

N_CHUNKS, CHUNK = 298_489, 64  # the corpus of the paper
N_FACTORS, L1, EPOCHS = 2000, 0.3, 2  # the paper's dictionary of BERT base
DEMO_FACTORS, DEMO_L1 = 1000, 2.0  # the dictionary that comes with a demo model
N_IMPORTANT, N_SHOWN = 500, 200  # codes of the importance; contexts of a factor and layer


@dataclass(frozen=True, eq=False)
class Corpus:
    """A model, its dictionary and the texts on which factors are measured.

    Attributes:
        model: The model.
        factors: The dictionary.
        layers: The layers of whose hidden states it is a dictionary.
        chunks: The texts, of 64 tokens each.
        notes: What differs from the paper, one sentence each.
        key: A name for files that depend on model, dictionary and texts.
    """

    model: Any
    factors: Factors
    layers: tuple[int, ...]
    chunks: list[str]
    notes: tuple[str, ...]
    key: str


@lru_cache(maxsize=1)
def corpus(setting: Setting) -> Corpus:
    """The model, its dictionary, and a seeded sample of chunks: test reviews, or texts sampled from the model without reviews."""
    model = load_model(setting.model)
    layers = tuple(range(n_layers(model)))
    n_chunks = setting.size(N_CHUNKS, 20)
    chunks, source = _chunks(setting, model, n_chunks)
    try:
        factors, origin = demo_factors(setting.model), "that comes with the demo model, fitted after all blocks"
    except errors.EmbspaceError:
        is_demo = setting.model in catalog.names()
        options: dict[str, Any] = {
            "n_factors": DEMO_FACTORS if is_demo else N_FACTORS,
            "l1": DEMO_L1 if is_demo else L1,
            "layers": layers,
            "epochs": EPOCHS,
            "seed": setting.seed,
        }
        folder = setting.folder / f"dictionary-{Path(setting.model).name}-{n_chunks}-{setting.seed}"
        factors = fit_factors(model, chunks, **options, checkpoint=make_folder(folder))
        origin = f"of {options['n_factors']:,} factors, fitted to the same chunks after all blocks"
    notes = (
        f"The model is {setting.model} with {len(layers)} layers (BERT base with 12 in the paper), with the dictionary {origin} "
        f"(λ = {factors.l1:g}).",
        f"The texts are {len(chunks):,} chunks of {CHUNK} tokens, {source} ({N_CHUNKS:,} chunks in the paper).",
    )
    digest = sha256(factors.directions.float().cpu().numpy().tobytes() + "".join(chunks).encode()).hexdigest()[:12]
    return Corpus(model, factors, layers, chunks, notes, f"{Path(setting.model).name}-{digest}")


def _chunks(setting: Setting, model: Any, n_chunks: int) -> tuple[list[str], str]:
    """A seeded sample of chunks, and where they come from."""
    path = find_file(setting.data, "reviews")
    if path is None:
        texts = sample_texts(model, n=n_chunks, n_tokens=CHUNK, seed=setting.seed)
        return texts, "sampled from the model, because there is no file of reviews"
    texts = read_texts(path, where=TEST)
    chunks: list[str] = []
    for index in np.random.default_rng(setting.seed).permutation(len(texts)):
        offsets = model.tokenizer(texts[index], return_offsets_mapping=True, add_special_tokens=False, verbose=False)[
            "offset_mapping"
        ]
        for start in range(0, len(offsets) - CHUNK + 1, CHUNK):
            chunks.append(texts[index][offsets[start][0] : offsets[start + CHUNK - 1][1]])
        if len(chunks) >= n_chunks:
            break
    return chunks[:n_chunks], f"of test reviews in {path.name}"


@lru_cache(maxsize=1)
def corpus_activity(setting: Setting) -> Activity:
    """Importance and top contexts on the corpus; read from the setting's folder if an earlier run has stored them there."""
    its = corpus(setting)
    folder = make_folder(setting.folder / f"activity-{its.key}")
    files = {name: folder / f"{name}.parquet" for name in ("importance", "measures", "contexts")}
    if not all(file.is_file() for file in files.values()):
        n = setting.size(N_IMPORTANT, 50)
        result = activity(
            its.factors, its.model, its.chunks, layers=its.layers, n=n, n_contexts=2 * N_SHOWN, max_tokens=None
        )
        for name, file in files.items():
            with whole(file) as partial:
                getattr(result, name).to_parquet(partial, index=False)
    return Activity(**{name: pd.read_parquet(file) for name, file in files.items()})


def shown_contexts(setting: Setting) -> pd.DataFrame:
    """The 200 top contexts of every factor and layer."""
    contexts: Any = corpus_activity(setting).contexts
    return contexts[contexts["rank"] < N_SHOWN].reset_index(drop=True)


@lru_cache(maxsize=1)
def brown(setting: Setting) -> tuple[list[Sentence], list[str]]:
    """The tagged sentences of the Brown corpus, and the file of each.

    Raises:
        EmbspaceError: If the data folder lacks them.
    """
    table = pd.read_parquet(data_file(setting, "brown")).sort_values(["file", "sentence", "position"])
    sentences, files = [], []
    groups: Any = table.groupby(["file", "sentence"], sort=False)
    for (file, _), part in groups:
        sentences.append(list(zip(part["word"], part["tag"], strict=True)))
        files.append(str(file))
    return sentences, files
