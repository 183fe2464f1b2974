"""MAPS, causal part: the cost of ablating the best head of a relation, next to other heads and to positions without a source."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..forward.batches import TokenBatch
from ..forward.next_tokens import next_log_probabilities
from ..forward.runs import Hook
from ..forward.texts import read_texts
from ..interventions.hooks import ablation_hooks
from ..lens import EmbeddingLens
from ..tables.frames import tidy
from ..tables.intervals import bootstrap_interval
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures
from .relation_tables import SOURCE, best_heads, raw_weights, relations_of, scores_of, single_token_pairs

N_TEXTS = 500
LENGTH = 127  # tokens of a sequence, without the first
MAX_DISTANCE = 64  # tokens between a source and its target
MIN_POSITION = 8  # targets at the beginning of a sequence have too little context
MAX_PER_PAIR = 20  # positions of one pair
AFTER_SOURCE, WITHOUT_SOURCE = "after the source", "without a source"

Pair = tuple[int, int]
Position = tuple[int, int]
"""The index of a sequence, and the index in it of the token before the target."""


def run(setting: Setting) -> Findings:
    """Ablate the best head of each relation whose score passes the permutation test."""
    lens = raw_weights(setting)
    relations = relations_of(setting)
    scores: Any = scores_of(lens, relations, setting)
    best = best_heads(scores[scores["p_value"] < 0.05], "promotion")
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 2)]
    sequences = token_sequences(lens, texts)
    rows: list[dict[str, Any]] = []
    for row in best.to_dict("records"):
        name, layer, head = row["relation"], row["layer"], row["head"]
        for kind, positions in find_positions(set(single_token_pairs(lens, relations[name])), sequences).items():
            if len(positions) < 2:
                continue
            chosen = sorted({sequence for of_pair in positions.values() for sequence, _ in of_pair})
            intact = next_by_position(lens, sequences[chosen])
            costs = []
            for other in range(lens.weights.n_heads):
                table = tidy(["layer", "head"], [{"layer": [layer], "head": [other]}])
                hooks = ablation_hooks(table, "mean", model=lens.model)
                cost_of_head = intact - next_by_position(lens, sequences[chosen], hooks)
                costs.append(mean_costs(cost_of_head, positions, chosen))
            cost, others = costs.pop(head), np.mean(costs, axis=0) if costs else np.full(len(positions), np.nan)
            low, high = bootstrap_interval(cost, seed=setting.seed)
            measure = f"{name}, L{layer}H{head}, {kind}: cost of the head; control: the other heads of the block"
            rows.append(
                {
                    "measure": measure,
                    "value": cost.mean(),
                    "low": low,
                    "high": high,
                    "control": others.mean(),
                    "n": len(cost),
                }
            )
            low, high = bootstrap_interval(cost - others, seed=setting.seed)
            measure = f"{name}, L{layer}H{head}, {kind}: cost minus that of the other heads"
            rows.append({"measure": measure, "value": (cost - others).mean(), "low": low, "high": high, "n": len(cost)})
    return Findings(
        figures("MAPS:ablation", setting, rows),
        {"The heads": best},
        notes=(
            "The paper ablates many heads and counts correct answers to prompts; a small model answers too few of them, so the cost is that of one "
            "head, in nats, at targets in running text. n: pairs.",
        ),
    )


def token_sequences(lens: EmbeddingLens, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
    """Sequences of equal length, at most two of each text, after the beginning-of-sequence token."""
    tokenizer = lens.model.tokenizer
    first = tokenizer.bos_token_id or 0
    sequences = []
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)[: 2 * LENGTH]
        parts = [tokens[start : start + LENGTH] for start in range(0, len(tokens), LENGTH)]
        sequences += [[first, *part] for part in parts if len(part) == LENGTH]
    return np.array(sequences, dtype=np.int64).reshape(-1, LENGTH + 1)


def find_positions(pairs: set[Pair], sequences: Int[np.ndarray, "n length"]) -> dict[str, dict[Pair, list[Position]]]:
    """The positions of each pair: those after the source of the pair, and those that no source of the target precedes.

    Pairs that have no position after their source are left out of both kinds.
    """
    sources = defaultdict(set)
    for source, target in pairs:
        sources[target].add(source)
    positions: dict[str, Any] = {AFTER_SOURCE: defaultdict(list), WITHOUT_SOURCE: defaultdict(list)}
    for row, column in zip(*(index.tolist() for index in np.nonzero(np.isin(sequences, list(sources))))):
        if column < MIN_POSITION:
            continue
        target = int(sequences[row, column])
        nearby = set(sequences[row, max(0, column - MAX_DISTANCE) : column].tolist())
        before = set(sequences[row, :column].tolist())
        for source in sorted(sources[target]):
            if source in nearby:
                kind = AFTER_SOURCE
            elif sources[target] & before:
                continue
            else:
                kind = WITHOUT_SOURCE
            if len(positions[kind][source, target]) < MAX_PER_PAIR:
                positions[kind][source, target].append((row, column - 1))
    after_source = positions[AFTER_SOURCE]
    return {
        kind: {pair: found for pair, found in by_pair.items() if found and after_source.get(pair)}
        for kind, by_pair in positions.items()
    }


def next_by_position(
    lens: EmbeddingLens, sequences: Int[np.ndarray, "n length"], hooks: Sequence[Hook] = ()
) -> Float[np.ndarray, "n length_before_last"]:
    """The log-probability of the next token at every position but the last of every sequence."""
    parts = []
    for tokens in torch.from_numpy(sequences).split(32):
        zeros = torch.zeros(len(tokens), dtype=torch.long)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        batch = TokenBatch(torch.arange(len(tokens)), zeros, tokens, mask, zeros + tokens.shape[1])
        parts.append(next_log_probabilities(lens.model, batch, hooks=hooks).numpy())
    return np.concatenate(parts)


def mean_costs(
    cost: Float[np.ndarray, "n length"], positions: Mapping[Pair, list[Position]], sequences: Sequence[int]
) -> Float[np.ndarray, " n_pairs"]:
    """The mean cost at the positions of each pair; row i of `cost` is that of the i-th of the sequences."""
    row_of = {sequence: row for row, sequence in enumerate(sequences)}
    return np.array(
        [np.mean([cost[row_of[sequence], column] for sequence, column in of_pair]) for of_pair in positions.values()]
    )


EXPERIMENTS = [
    Experiment(
        name="MAPS:ablation",
        title="Relations, tested by ablation",
        source=f"{SOURCE}, §3.3 (causal effect); the protocol on running text is this package's own",
        protocol=(
            "Where the source of a pair is among the 64 tokens before its target: the loss of the target's log-probability when the best head is "
            "mean-ablated. Controls: the other heads of the block, and targets without a source before them."
        ),
        run=run,
        demo_scale=0.4,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("relations", "reviews"),
    )
]
