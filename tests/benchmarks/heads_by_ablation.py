"""Which zero-pass score of a head predicts what the model loses without it? Rank correlations over all heads, with intervals.

A head's effect is the rise of the mean loss over the texts when its output is set to zero.

    PYTHONPATH=. python tests/benchmarks/heads_by_ablation.py reviews-small-0 TEXTS --where "split == 'test'"
"""

import argparse
from typing import Any

import torch
from tqdm import tqdm

from embspace_lens import EmbeddingLens, ablation_hooks, agreement, head_statistics
from embspace_lens.forward.batches import TokenBatch, token_batches
from embspace_lens.forward.runs import logits
from embspace_lens.forward.texts import read_texts
from embspace_lens.tables.frames import tidy

SCORES = ("ov_norm", "qk_norm", "ov_copying", "qk_matching", "ov_effective_rank", "qk_effective_rank")


@torch.no_grad()
def loss(model: Any, batches: list[TokenBatch], hooks: Any = ()) -> float:
    """The mean negative log-probability of the texts' own tokens."""
    total = n = 0.0
    for batch in batches:
        log_p = logits(model, batch, hooks=hooks).float().log_softmax(dim=-1)[:, :-1]
        found = log_p.gather(2, batch.tokens[:, 1:, None])[..., 0][batch.mask[:, 1:]]
        total, n = total - float(found.sum()), n + len(found)
    return total / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--where")
    parser.add_argument("--n-texts", type=int, default=48)
    chosen = parser.parse_args()
    lens = EmbeddingLens.from_pretrained(chosen.model)
    model, texts = lens.weights.host.model, read_texts(chosen.texts, where=chosen.where)[: chosen.n_texts]
    batches = list(token_batches(model, texts, max_tokens=128))
    statistics, intact = head_statistics(lens), loss(model, batches)
    unit = statistics[["layer", "head"]].to_dict("list")
    rises = []
    for layer, head in tqdm(list(zip(unit["layer"], unit["head"])), unit="head", disable=None, leave=False):
        row = tidy(["layer", "head"], [{"layer": [layer], "head": [head]}])
        rises.append(loss(model, batches, ablation_hooks(row, model=model)) - intact)
    effects = tidy(["layer", "head", "value"], [{**unit, "value": rises}])
    print(f"{chosen.model}: loss {intact:.3f} over {sum(int(b.mask.sum()) for b in batches):,} tokens")
    for score in SCORES:
        paired, permuted = agreement(statistics, effects, scores=(score, "value")).to_dict("records")
        print(
            f"{score:18} {paired['correlation']:6.2f} [{paired['low']:.2f}, {paired['high']:.2f}]  p {paired['p_value']:.4f}  "
            f"permuted [{permuted['low']:.2f}, {permuted['high']:.2f}]"
        )


if __name__ == "__main__":
    main()
