"""Does a relation suffer when the head that scores best at it is taken out? More than when others of its layer are?

For each relation whose best head is clear of its shuffled control: places in texts where a pair's target comes next and its source stands
within 64 tokens before it. A head's cost is what the target's log-probability loses when its output is replaced by its mean; the control
is the mean cost of the layer's other heads, and places where no source stands before. Intervals: bootstrap over pairs.

    PYTHONPATH=. python tests/benchmarks/relations_by_ablation.py reviews-small-0 RELATIONS TEXTS --where "split == 'test'"
"""

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from embspace_lens import EmbeddingLens, ablation_hooks
from embspace_lens.circuits import read_relations, relation_scores
from embspace_lens.forward.batches import TokenBatch
from embspace_lens.forward.runs import logits
from embspace_lens.forward.texts import read_texts
from embspace_lens.tables.frames import tidy

BACK, MOST, LENGTH = 64, 20, 127  # tokens before a target, places a pair, tokens a row
Place = tuple[int, int]


def rows_of(lens: EmbeddingLens, texts: list[str]) -> np.ndarray:
    """Rows of equal length, the first two of each text, behind the beginning-of-sequence token."""
    tokenizer = lens.weights.host.model.tokenizer
    first = tokenizer.bos_token_id or 0
    found = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)[: 2 * LENGTH]
        found += [[first, *ids[i : i + LENGTH]] for i in range(0, len(ids), LENGTH)]
    return np.array([row for row in found if len(row) == LENGTH + 1])


def places_of(pairs: set[Any], rows: np.ndarray) -> dict[str, dict[Any, list[Place]]]:
    """By pair: where its target comes next behind its source, and where behind none that leads to it."""
    sources = defaultdict(set)
    for source, target in pairs:
        sources[target].add(source)
    found: dict[str, Any] = {"behind a source": defaultdict(list), "behind none": defaultdict(list)}
    for row, column in zip(*np.nonzero(np.isin(rows, list(sources)))):
        if column < 8:
            continue
        target, near = rows[row, column], set(rows[row, max(0, column - BACK) : column].tolist())
        every = set(rows[row, :column].tolist())
        for source in sources[target]:
            where = "behind a source" if source in near else None if sources[target] & every else "behind none"
            if where and len(found[where][source, target]) < MOST:
                found[where][source, target].append((row, column - 1))
    asked = found["behind a source"]
    return {where: {pair: seen for pair, seen in by.items() if seen and asked.get(pair)} for where, by in found.items()}


@torch.no_grad()
def log_probability(lens: EmbeddingLens, rows: np.ndarray, hooks: Any = ()) -> np.ndarray:
    """Of the next token, at every place."""
    found = []
    for part in torch.from_numpy(rows).split(32):
        n, length = part.shape
        zero = torch.zeros(n, dtype=torch.long)
        batch = TokenBatch(torch.arange(n), zero, part, torch.ones_like(part, dtype=torch.bool), zero + length)
        log_p = logits(lens.weights.host.model, batch, hooks=hooks).float().log_softmax(dim=-1)
        found.append(log_p.gather(2, part.roll(-1, dims=1)[..., None])[..., 0].numpy())
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("relations")
    parser.add_argument("texts")
    parser.add_argument("--where")
    parser.add_argument("--n-texts", type=int, default=500)
    chosen = parser.parse_args()
    lens = EmbeddingLens.from_pretrained(chosen.model)
    model, relations = lens.weights.host.model, read_relations(chosen.relations)
    scores = relation_scores(lens, relations).query("effect == 'promotion' and p_value < 0.05")
    best = scores.sort_values("relation_score", ascending=False, kind="stable").groupby("relation").head(1)
    rows = rows_of(lens, read_texts(chosen.texts, where=chosen.where)[: chosen.n_texts])
    word = lens.vocabulary.word
    where = {
        name: places_of({(word(a), word(b)) for a, b in relations[name] if None not in (word(a), word(b))}, rows)
        for name in best["relation"]
    }
    needed = sorted({row for by in where.values() for part in by.values() for seen in part.values() for row, _ in seen})
    number = {row: i for i, row in enumerate(needed)}
    intact = log_probability(lens, rows[needed])
    lost: dict[Place, np.ndarray] = {}
    for layer in sorted(set(best["layer"])):
        for head in range(lens.weights.n_heads):
            unit = tidy(["layer", "head"], [{"layer": [layer], "head": [head]}])
            hooks = ablation_hooks(unit, "mean", model=model)
            lost[layer, head] = intact - log_probability(lens, rows[needed], hooks)
    rng = np.random.default_rng(0)
    print("relation, head, places: pairs, prompts; cost; others of its layer; difference [95 %]")
    for row in best.to_dict("records"):
        for said, by in where[row["relation"]].items():

            def cost(head: int, by: Any = by, layer: int = row["layer"]) -> np.ndarray:
                return np.array([np.mean([lost[layer, head][number[r], c] for r, c in seen]) for seen in by.values()])

            if len(by) < 2:
                continue
            mine = cost(row["head"])
            others = np.mean([cost(head) for head in range(lens.weights.n_heads) if head != row["head"]], axis=0)
            drawn = (mine - others)[rng.integers(len(mine), size=(2000, len(mine)))].mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            print(
                f"{row['relation']}, L{row['layer']}H{row['head']}, {said}: {len(by)}, {sum(map(len, by.values()))}; {mine.mean():.3f}; "
                f"{others.mean():.3f}; {(mine - others).mean():.3f} [{low:.3f}, {high:.3f}]"
            )


if __name__ == "__main__":
    main()
