"""Does ablating the head with the best score for a relation lower the probability of the targets? Is this effect larger than for other heads of the layer?

For each relation whose best head passes the permutation test, the script takes positions in texts at which the next token is the target of a pair
and one of the 64 tokens before is its source. The cost of a head is the loss of the target's log-probability when the head's output is
replaced by its mean. There are two controls: the mean cost of the other heads of the layer, and positions that no source precedes.
Intervals are bootstrap intervals over pairs.

    PYTHONPATH=. python tests/benchmarks/relations_by_ablation.py reviews-small-0 RELATIONS TEXTS --where "split == 'test'"
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from embspace_lens import EmbeddingLens, ablation_hooks
from embspace_lens.circuits.relations import read_relations, relation_scores
from embspace_lens.forward.batches import TokenBatch
from embspace_lens.forward.runs import logits
from embspace_lens.forward.texts import read_texts
from embspace_lens.tables.frames import tidy
from embspace_lens.tables.intervals import bootstrap_interval

MAX_DISTANCE = 64  # tokens between a source and its target
MIN_POSITION = 8  # targets at the beginning of a sequence have too little context
MAX_PER_PAIR = 20  # positions of one pair
LENGTH = 127  # tokens of a sequence, without the first
N_RESAMPLES = 2000

AFTER_SOURCE, WITHOUT_SOURCE = "after the source", "without a source"
Pair = tuple[int, int]
Position = tuple[int, int]
"""The index of a sequence, and the index in it of the token before the target."""


def token_sequences(lens: EmbeddingLens, texts: list[str]) -> np.ndarray:
    """Sequences of equal length, at most two of each text, after the beginning-of-sequence token."""
    tokenizer = lens.model.tokenizer
    first = tokenizer.bos_token_id or 0
    sequences = []
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)[: 2 * LENGTH]
        sequences += [[first, *tokens[start : start + LENGTH]] for start in range(0, len(tokens), LENGTH)]
    return np.array([sequence for sequence in sequences if len(sequence) == LENGTH + 1])


def find_positions(pairs: set[Pair], sequences: np.ndarray) -> dict[str, dict[Pair, list[Position]]]:
    """The positions of each pair: those after the source of the pair, and those that no source of the target precedes.

    Pairs that have no position after their source are left out of both kinds.
    """
    sources = defaultdict(set)
    for source, target in pairs:
        sources[target].add(source)
    positions: dict[str, Any] = {AFTER_SOURCE: defaultdict(list), WITHOUT_SOURCE: defaultdict(list)}
    for row, column in zip(*np.nonzero(np.isin(sequences, list(sources)))):
        if column < MIN_POSITION:
            continue
        target = sequences[row, column]
        tokens_nearby = set(sequences[row, max(0, column - MAX_DISTANCE) : column].tolist())
        tokens_before = set(sequences[row, :column].tolist())
        for source in sources[target]:
            if source in tokens_nearby:
                kind = AFTER_SOURCE
            elif sources[target] & tokens_before:
                continue
            else:
                kind = WITHOUT_SOURCE
            if len(positions[kind][source, target]) < MAX_PER_PAIR:
                positions[kind][source, target].append((row, column - 1))
    after_source = positions[AFTER_SOURCE]
    return {
        kind: {
            pair: pair_positions
            for pair, pair_positions in by_pair.items()
            if pair_positions and after_source.get(pair)
        }
        for kind, by_pair in positions.items()
    }


@torch.no_grad()
def next_log_probabilities(lens: EmbeddingLens, sequences: np.ndarray, hooks: Any = ()) -> np.ndarray:
    """The log-probability of the next token, at every position of every sequence."""
    parts = []
    for tokens in torch.from_numpy(sequences).split(32):
        n, length = tokens.shape
        zeros = torch.zeros(n, dtype=torch.long)
        batch = TokenBatch(torch.arange(n), zeros, tokens, torch.ones_like(tokens, dtype=torch.bool), zeros + length)
        log_p = logits(lens.model, batch, hooks=hooks).float().log_softmax(dim=-1)
        parts.append(log_p.gather(2, tokens.roll(-1, dims=1)[..., None])[..., 0].numpy())
    return np.concatenate(parts)


def mean_costs(cost: np.ndarray, positions: Mapping[Pair, list[Position]], row_of: Mapping[int, int]) -> np.ndarray:
    """The mean cost of a head at the positions of each pair."""
    return np.array(
        [
            np.mean([cost[row_of[row], column] for row, column in pair_positions])
            for pair_positions in positions.values()
        ]
    )


def main(model: str, relations: Path, texts: Path, where: str | None = None, n_texts: int = 500) -> None:
    """Print one line per relation and kind of position."""
    lens = EmbeddingLens.from_pretrained(model)
    pairs_of = read_relations(relations)
    scores = relation_scores(lens, pairs_of).query("effect == 'promotion' and p_value < 0.05")
    best = scores.sort_values("relation_score", ascending=False, kind="stable").groupby("relation").head(1)
    sequences = token_sequences(lens, read_texts(texts, where=where)[:n_texts])
    token_of = lens.vocabulary.word
    positions = {}
    for name in best["relation"]:
        pairs = {(token_of(source), token_of(target)) for source, target in pairs_of[name]}
        positions[name] = find_positions({pair for pair in pairs if None not in pair}, sequences)

    # Only sequences with a position are run.
    rows = sorted(
        {
            row
            for kinds in positions.values()
            for by_pair in kinds.values()
            for pair_positions in by_pair.values()
            for row, _ in pair_positions
        }
    )
    row_of = {row: index for index, row in enumerate(rows)}
    intact = next_log_probabilities(lens, sequences[rows])
    costs = {}
    for layer in sorted(set(best["layer"])):
        for head in range(lens.weights.n_heads):
            table = tidy(["layer", "head"], [{"layer": [layer], "head": [head]}])
            hooks = ablation_hooks(table, "mean", model=lens.model)
            costs[layer, head] = intact - next_log_probabilities(lens, sequences[rows], hooks)

    print("relation, head, positions: pairs, positions; cost; cost of the layer's other heads; difference [95 %]")
    for row in best.to_dict("records"):
        for kind, by_pair in positions[row["relation"]].items():
            if len(by_pair) < 2:
                continue
            head_costs = [
                mean_costs(costs[row["layer"], head], by_pair, row_of) for head in range(lens.weights.n_heads)
            ]
            best_cost = head_costs.pop(row["head"])
            other_costs = np.mean(head_costs, axis=0)
            low, high = bootstrap_interval(best_cost - other_costs, n_resamples=N_RESAMPLES)
            n_positions = sum(map(len, by_pair.values()))
            print(
                f"{row['relation']}, L{row['layer']}H{row['head']}, {kind}: {len(by_pair)}, {n_positions}; "
                f"{best_cost.mean():.3f}; {other_costs.mean():.3f}; {(best_cost - other_costs).mean():.3f} [{low:.3f}, {high:.3f}]"
            )


if __name__ == "__main__":
    typer.run(main)
