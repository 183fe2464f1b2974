"""Which statistic of a head's weights predicts the effect of ablating the head?"""

import numpy as np
from tqdm import tqdm

from ..circuits.statistics import HEAD_COLUMNS, head_statistics
from ..forward.batches import token_batches
from ..forward.next_tokens import mean_loss
from ..forward.texts import read_texts
from ..interventions.hooks import ablation_hooks
from ..interventions.rank_correlation import agreement
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures

NAME = "circuits:head-statistics"
N_TEXTS, MAX_TOKENS = 48, 128


def run(setting: Setting) -> Findings:
    """Correlate each statistic of `head_statistics` with the increase of the loss when the head's output is set to zero."""
    lens = EmbeddingLens.from_pretrained(setting.model)
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 2)]
    batches = list(token_batches(lens.model, texts, max_tokens=MAX_TOKENS))
    statistics, intact = head_statistics(lens), mean_loss(lens.model, batches)
    heads = {name: statistics[name].tolist() for name in ("layer", "head")}
    increases = []
    for layer, head in tqdm(list(zip(heads["layer"], heads["head"])), unit="head", disable=None, leave=False):
        hooks = ablation_hooks(tidy(["layer", "head"], [{"layer": [layer], "head": [head]}]), model=lens.model)
        increases.append(mean_loss(lens.model, batches, hooks=hooks) - intact)
    effects = tidy(["layer", "head", "value"], [{**heads, "value": increases}])
    rows = []
    for column in HEAD_COLUMNS:
        if len(set(statistics[column].tolist())) < 2 or np.ptp(increases) == 0:
            continue
        paired, permuted = agreement(statistics, effects, scores=(column, "value"), seed=setting.seed).to_dict(
            "records"
        )
        rows.append(
            {
                "measure": f"{column}: rank correlation with the increase of the loss",
                "value": paired["correlation"],
                "low": paired["low"],
                "high": paired["high"],
                "control": permuted["correlation"],
                "n": paired["n"],
            }
        )
    return Findings(
        figures(NAME, setting, rows),
        {"The increase of the loss by head": effects},
        notes=(
            f"The loss of the intact model is {intact:.3f} over {len(texts)} reviews of at most {MAX_TOKENS} tokens.",
        ),
    )


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Statistics of heads and their ablation",
        source="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits (copying scores); the comparison is this package's own",
        protocol=(
            "Rank correlation over all heads of a statistic of the weights with the increase of the loss when the head is set to zero. Control: heads "
            "permuted."
        ),
        run=run,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("reviews",),
    )
]
