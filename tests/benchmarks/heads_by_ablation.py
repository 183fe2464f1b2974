"""Which statistic of a head's weights predicts the effect of ablating the head? Rank correlations over all heads, with intervals.

The effect of a head is the increase of the mean loss over texts when the head's output is set to zero.

    PYTHONPATH=. python tests/benchmarks/heads_by_ablation.py reviews-small-0 TEXTS --where "split == 'test'"
"""

from pathlib import Path
from typing import Any

import torch
import typer
from tqdm import tqdm

from embspace_lens import EmbeddingLens, ablation_hooks, agreement, head_statistics
from embspace_lens.forward.batches import TokenBatch, token_batches
from embspace_lens.forward.runs import logits
from embspace_lens.forward.texts import read_texts
from embspace_lens.tables.frames import tidy

SCORES = ("ov_norm", "qk_norm", "ov_copying", "qk_matching", "ov_effective_rank", "qk_effective_rank")


@torch.no_grad()
def mean_loss(model: Any, batches: list[TokenBatch], hooks: Any = ()) -> float:
    """The mean negative log-probability of each next token of the texts."""
    total = n_tokens = 0.0
    for batch in batches:
        log_p = logits(model, batch, hooks=hooks).float().log_softmax(dim=-1)[:, :-1]
        log_p_next = log_p.gather(2, batch.tokens[:, 1:, None])[..., 0][batch.mask[:, 1:]]
        total, n_tokens = total - float(log_p_next.sum()), n_tokens + len(log_p_next)
    return total / n_tokens


def main(model: str, texts: Path, where: str | None = None, n_texts: int = 48) -> None:
    """Print one line per statistic."""
    lens = EmbeddingLens.from_pretrained(model)
    examples = read_texts(texts, where=where)[:n_texts]
    batches = list(token_batches(lens.model, examples, max_tokens=128))
    statistics, intact_loss = head_statistics(lens), mean_loss(lens.model, batches)
    heads = statistics[["layer", "head"]].to_dict("list")
    increases = []
    for layer, head in tqdm(list(zip(heads["layer"], heads["head"])), unit="head", disable=None, leave=False):
        hooks = ablation_hooks(tidy(["layer", "head"], [{"layer": [layer], "head": [head]}]), model=lens.model)
        increases.append(mean_loss(lens.model, batches, hooks) - intact_loss)
    effects = tidy(["layer", "head", "value"], [{**heads, "value": increases}])
    n_tokens = sum(int(batch.mask.sum()) for batch in batches)
    print(f"{model}: loss {intact_loss:.3f} over {n_tokens:,} tokens")
    for score in SCORES:
        paired, permuted = agreement(statistics, effects, scores=(score, "value")).to_dict("records")
        print(
            f"{score:18} {paired['correlation']:6.2f} [{paired['low']:.2f}, {paired['high']:.2f}]  "
            f"p {paired['p_value']:.4f}  permuted [{permuted['low']:.2f}, {permuted['high']:.2f}]"
        )


if __name__ == "__main__":
    typer.run(main)
