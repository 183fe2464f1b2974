"""Paper A, keep-k: which right inverse preserves inner products when only k scores of a projection are kept."""

import math

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..evidence.truncation import keep_k
from ..forward.states import hidden_states
from ..forward.texts import read_texts
from ..lens import EmbeddingLens
from ..plots.evidence_curves import plot_keep_k
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import LENS, raw_lens

NAME = "A:keep-k"
N_VECTORS, N_TEXTS = 300, 100
STATES = "hidden states"
PUBLISHED = {
    ("gaussian", 512): (0.70, 0.04),
    ("W_out", 512): (0.63, 0.12),
    (STATES, 512): (0.89, 0.74),
    ("gaussian", 4096): (0.43, 0.25),
    ("W_out", 4096): (0.54, 0.23),
    (STATES, 4096): (0.0, 0.80),
}
CROSSINGS = {"gaussian": 7000.0, "W_out": 12000.0, STATES: 3000.0}
NAN = (float("nan"), float("nan"))


def run(setting: Setting) -> Findings:
    """Measure the similarity of inner products for Gaussian vectors, MLP values and hidden states of reviews."""
    lens = raw_lens(setting.model)
    vectors = {STATES: _states(lens, setting)}
    largest = lens.space.n_tokens
    ks = sorted(
        {k for k in (512, 4096) if k <= largest}
        | {2**i for i in range(2, largest.bit_length()) if 2**i < largest}
        | {largest}
    )
    table = keep_k(lens, vectors, ks=ks, n=setting.size(N_VECTORS, 2), seed=setting.seed)
    rows = []
    for source, part in table.groupby("source", sort=False):
        by_k = part.pivot(index="k", columns="inverse", values="similarity")
        for k in [k for k in ks if k in (16, 64, 256, 512, 1024, 4096)]:
            published, published_control = PUBLISHED.get((str(source), k), NAN)
            rows.append(
                {
                    "measure": f"{source}, k = {k}: transpose, control pinv",
                    "value": by_k.loc[k, "transpose"],
                    "control": by_k.loc[k, "pinv"],
                    "published": published,
                    "published_control": published_control,
                    "n": int(part["n"].iloc[0]),
                }
            )
        crossing = crossing_of(by_k)
        rows.append(
            {
                "measure": f"{source}: k at which the curves cross",
                "value": crossing,
                "published": CROSSINGS[str(source)],
                "n": int(part["n"].iloc[0]),
            }
        )
        rows.append(
            {
                "measure": f"{source}: the same, as a share of the vocabulary",
                "value": crossing / largest,
                "published": CROSSINGS[str(source)] / 50257,
                "n": int(part["n"].iloc[0]),
            }
        )
    return Findings(
        figures(NAME, setting, rows),
        plot=lambda: plot_keep_k(table),
        notes=(
            f"{setting.model} has {largest} tokens, GPT-2 has 50257: the same k is a larger share of the vocabulary.",
            "The k of the crossing is interpolated on a logarithmic axis between powers of two; it is empty where the curves do not cross.",
        ),
    )


def crossing_of(curves: pd.DataFrame) -> float:
    """The smallest k at which pinv becomes better than the transpose, interpolated between the measured ones; NaN if never."""
    lead = (curves["transpose"] - curves["pinv"]).tolist()
    ks = [int(k) for k in curves.index]
    for i in range(1, len(ks)):
        if lead[i - 1] > 0 >= lead[i]:
            share = lead[i - 1] / (lead[i - 1] - lead[i])
            return math.exp(math.log(ks[i - 1]) + share * (math.log(ks[i]) - math.log(ks[i - 1])))
    return float("nan")


def _states(lens: EmbeddingLens, setting: Setting) -> Float[Tensor, "n d_model"]:
    """Hidden states of test reviews, of all layers together."""
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 2)]
    layers = range(lens.weights.n_layers)
    batches = list(hidden_states(lens.model, texts, layers, max_tokens=128))
    return torch.cat([batch.states[layer] for layer in layers for batch in batches]).cpu()


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Keeping k tokens",
        source="Dar et al. (2023), right inverses under keep-k",
        protocol=(
            "The cosine of inner products of vectors before and after all but the k largest entries of both projections are set to zero, "
            f"with the transpose as right inverse; control: with the pseudo-inverse ({LENS})."
        ),
        run=run,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("reviews",),
    )
]
