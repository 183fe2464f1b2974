"""Do virtual weights predict effects? Source features are ablated; the change of target features is compared with their weights."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..features.activation_statistics import coactivation, reweighted
from ..features.dictionary import Features
from ..features.feature_pairs import virtual_weights
from ..forward.batches import TokenBatch, token_batches
from ..forward.runs import collect_activations
from ..forward.texts import read_texts
from ..lens import EmbeddingLens
from ..space.feature_rows import read_rows
from ..tables.intervals import bootstrap_interval
from .data_files import TEST, TRAIN, data_file
from .experiment import Experiment, Findings, Setting, figures
from .feature_dictionaries import dictionaries

NAME = "TWERA:effects"
SOURCE, TARGET = "transcoder-1", "transcoder-3"
N_TRAIN, N_TEST = 1000, 1000  # texts of the co-activations, and of the ablations
N_SOURCES, MIN_FREQUENCY = 100, 1e-3
MAX_POSITIONS = 100  # ablated positions of one source feature
N_PERMUTATIONS = 100
BATCH_TOKENS, MAX_TOKENS = 2048, 128
CODES, INPUTS, RANKS = "change of codes", "change of pre-activations", "change of codes, rank correlation"
RAW, ERA, TWERA, COACTIVATION, NORM = (
    "virtual weight",
    "ERA",
    "TWERA",
    "co-activation alone",
    "norm of the target's encoder alone",
)

Matrix = Float[np.ndarray, "n_sources n_targets"]


def run(setting: Setting) -> Findings:
    """Ablate source features one by one, and correlate the change of all target features with each predictor."""
    its = dictionaries(NAME, setting)
    source, target = its[SOURCE], its[TARGET]
    lens = EmbeddingLens.from_pretrained(setting.model)
    path = data_file(setting, "reviews")
    train = read_texts(path, where=TRAIN)[: setting.size(N_TRAIN, 10)]
    test = read_texts(path, where=TEST)[: setting.size(N_TEST, 10)]
    predicted, frequency = predictors(lens, source, target, train)
    candidates = np.flatnonzero(frequency >= MIN_FREQUENCY)
    chosen = np.random.default_rng(setting.seed).permutation(candidates)[:N_SOURCES]
    changes, n_positions = effects(lens.model, source, target, test, chosen)
    was_active = n_positions > 0
    changes[RANKS] = changes[CODES]
    rows = [
        correlation_row(
            f"{name}: {kind}", predictor[chosen][was_active], change[was_active], kind == RANKS, setting.seed
        )
        for kind, change in changes.items()
        for name, predictor in predicted.items()
    ]
    return Findings(figures(NAME, setting, rows), notes=NOTES)


def predictors(
    lens: EmbeddingLens, source: Features, target: Features, texts: list[str]
) -> tuple[dict[str, Matrix], Float[np.ndarray, " n_sources"]]:
    """What may predict the effect of each source feature on each target feature; and how often source features are active."""
    pairs = virtual_weights(source, target, lens=lens, k=len(source) * len(target))
    statistics = coactivation(source, lens.model, texts, target=target, pairs=pairs, max_tokens=MAX_TOKENS)
    table = reweighted(pairs, statistics)

    def matrix(values: Any, of: pd.DataFrame) -> Matrix:
        entries = np.zeros((len(source), len(target)))
        entries[of["src_feature_index"], of["dest_feature_index"]] = np.nan_to_num(values)
        return entries

    activity = statistics.target_features["mean_activation"].to_numpy()
    together = matrix(statistics.pairs["mean_product"], statistics.pairs)
    norm = torch.cat([tile.norm(dim=1) for tile in read_rows(lens.weights, target).tiles()]).numpy()
    predicted = {
        RAW: matrix(table["score"], table),
        ERA: matrix(table["era"], table),
        TWERA: matrix(table["twera"], table),
        COACTIVATION: together / np.where(activity > 0, activity, np.inf),
        NORM: np.broadcast_to(norm, together.shape),
    }
    return predicted, statistics.source_features["frequency"].to_numpy()


@torch.no_grad()
def effects(
    model: Any, source: Features, target: Features, texts: list[str], chosen: Int[np.ndarray, " n"]
) -> tuple[dict[str, Matrix], Int[np.ndarray, " n"]]:
    """How much each target feature decreases where a source feature is active, if what that feature writes is subtracted.

    The feature is ablated at all positions of a text at which it is active; changes are means over these positions.

    Returns:
        The changes of the targets' codes and of their pre-activations, and the number of positions of each source feature.
    """
    assert source.encoder is not None and target.encoder is not None
    totals = {kind: torch.zeros(len(chosen), len(target), dtype=torch.float64) for kind in (CODES, INPUTS)}
    n_positions = np.zeros(len(chosen), dtype=np.int64)
    for batch in token_batches(model, texts, batch_tokens=BATCH_TOKENS, max_tokens=MAX_TOKENS):
        if (n_positions >= MAX_POSITIONS).all():
            break
        intact = collect_activations(model, batch, [source.hook, target.hook])
        codes = source.encode(intact[source.hook])[..., torch.from_numpy(chosen)] * batch.mask[..., None]
        for i, feature in enumerate(chosen.tolist()):
            is_active = codes[..., i] > 0
            rows = is_active.any(dim=1)
            if not rows.any() or n_positions[i] >= MAX_POSITIONS:
                continue
            written = codes[rows, :, i, None] * source[feature]

            def ablate(value: Tensor, hook: Any, written: Tensor = written) -> Tensor:
                return value - written.to(value)

            part = TokenBatch(*(getattr(batch, name)[rows] for name in batch.__dataclass_fields__))
            ablated = collect_activations(model, part, [target.hook], hooks=[(source.output_hook, ablate)])
            x, y = intact[target.hook][is_active], ablated[target.hook][is_active[rows]]
            totals[CODES][i] += (target.encode(x) - target.encode(y)).sum(dim=0)
            totals[INPUTS][i] += ((x - y) @ target.encoder.to(x)).sum(dim=0)
            n_positions[i] += len(x)
    return {kind: total.numpy() / n_positions.clip(1)[:, None] for kind, total in totals.items()}, n_positions


def correlation_row(measure: str, predictor: Matrix, change: Matrix, is_ranked: bool, seed: int) -> dict[str, Any]:
    """The correlation over targets, a mean over source features; control: the predictor permuted among targets."""
    from scipy.stats import rankdata  # imported late: scipy.stats takes a second to import

    if is_ranked:
        predictor, change = rankdata(predictor, axis=1), rankdata(change, axis=1)
    values = correlations(predictor, change)
    generator = np.random.default_rng(seed)
    permuted = [correlations(generator.permuted(predictor, axis=1), change).mean() for _ in range(N_PERMUTATIONS)]
    low, high = bootstrap_interval(values, seed=seed)
    return {
        "measure": measure,
        "value": values.mean(),
        "low": low,
        "high": high,
        "control": np.mean(permuted),
        "n": len(values),
    }


def correlations(a: Matrix, b: Matrix) -> Float[np.ndarray, " n"]:
    """Pearson correlation of each row of a with the same row of b; 0 where one is constant."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(norm > 0, norm, 1)


NOTES = (
    f"Source features of {SOURCE} (active at {MIN_FREQUENCY:.1%} of training tokens or more, {N_SOURCES} at random) are ablated one at a time: what the "
    "feature writes is subtracted from the MLP's output at all positions of a text at which it is active, up to "
    f"{MAX_POSITIONS} positions. The effect is the decrease of each feature of {TARGET} at these positions, a mean.",
    "Correlations over targets, means over source features with a 95 % bootstrap interval over source features (n). Control: the predictor "
    "permuted among the targets.",
    "ERA, TWERA and the co-activation are from training reviews, effects from held-out reviews. Co-activation alone is E[a_i a_j] / E[a_j], the factor "
    "of TWERA without the weight.",
)

EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Virtual weights and effects",
        source="Ameisen et al. (2025), Circuit Tracing, Global Weights; the test by ablation is this package's own",
        protocol=(
            "The correlation, over the features of a later transcoder, of the virtual weight from a feature of an earlier transcoder with the effect of "
            "ablating that feature on held-out reviews; beside weights that are re-weighted by co-activation (ERA, TWERA), the co-activation alone and "
            "the norm of the target's encoder alone. Control: weights permuted among the targets."
        ),
        run=run,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("reviews",),
    )
]
