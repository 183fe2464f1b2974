"""MAPS, static part: relation scores, suppression, salient operations."""

from typing import Any

import torch

from ..circuits.operations import salient_operations
from ..circuits.relations import Effect, relation_scores
from ..lens import EmbeddingLens
from .experiment import Experiment, Findings, Setting, figures
from .relation_tables import SOURCE, K, best_heads, published, raw_weights, relations_of, scores_of

N_SALIENT, N_RANDOM = 30, 500


def run_relations(setting: Setting) -> Findings:
    """The best head of each relation by promotion."""
    return _best(setting, "MAPS:relations", "promotion")


def run_suppression(setting: Setting) -> Findings:
    """The best head of each relation by suppression."""
    return _best(setting, "MAPS:suppression", "suppression")


def _best(setting: Setting, name: str, effect: Effect) -> Findings:
    lens = raw_weights(setting)
    relations = relations_of(setting)
    best = best_heads(scores_of(lens, relations, setting), effect)
    rows = [
        {
            "measure": f"{row['relation']}: best head's {effect} score",
            "value": row["relation_score"],
            "control": row["control"],
            "published": published(row["relation"], effect)[0],
            "n": row["n"],
        }
        for row in best.to_dict("records")
    ]
    left_out = sorted(set(relations) - set(best["relation"]))
    notes = ["Published: GPT-2 xl, from the authors' repository; n: pairs of single tokens of this model."]
    if left_out:
        notes.append(f"Fewer than 30 pairs of single tokens, no score: {', '.join(left_out)}.")
    return Findings(figures(name, setting, rows), {"The best head of each relation": best}, notes=tuple(notes))


def run_operations(setting: Setting) -> Findings:
    """How often heads map their most amplified tokens to themselves, and how much they amplify them."""
    lens = raw_weights(setting)
    table: Any = salient_operations(lens, n=N_SALIENT, k=K)
    is_copied = table["src_token_index"] == table["dest_token_index"]
    by_head = is_copied.groupby([table["layer"], table["head"]]).sum() / N_SALIENT
    generator = torch.Generator().manual_seed(setting.seed)
    random_tokens = lens.space.token_ids[torch.randperm(lens.space.n_tokens, generator=generator)[:N_RANDOM]]
    copying = {"copying": [(token, token) for token in random_tokens.tolist()]}
    random_copies: Any = relation_scores(lens, copying, k=K, n_shuffles=1).query("effect == 'promotion'")[
        "relation_score"
    ]
    on_random = EmbeddingLens.from_pretrained(setting.model, fold_ln=False, vocabulary=random_tokens.tolist())
    random_amplification: Any = salient_operations(on_random, n=on_random.space.n_tokens, k=1)["amplification"]
    n_heads = len(by_head)
    rows = [
        {
            "measure": f"share of salient tokens that a head maps to themselves (top {K}), mean over heads",
            "value": by_head.mean(),
            "control": random_copies.mean(),
            "n": n_heads,
        },
        {
            "measure": "the same, the head with the largest share",
            "value": by_head.max(),
            "control": random_copies.max(),
            "n": n_heads,
        },
        {
            "measure": "amplification of salient tokens, mean over heads",
            "value": table.loc[table["rank"] == 0, "amplification"].mean(),
            "control": random_amplification.mean(),
            "n": n_heads,
        },
    ]
    strongest = table[(table["src_rank"] < 5) & (table["rank"] < 5)].reset_index(drop=True)
    return Findings(
        figures("MAPS:operations", setting, rows),
        {"The five most amplified tokens of each head, and the five tokens to which it maps each": strongest},
        notes=(
            "The paper describes the lists in words and has the descriptions judged by raters; these figures are the package's own.",
            f"Control: {N_RANDOM} random tokens instead of the {N_SALIENT} most amplified ones.",
        ),
    )


EXPERIMENTS = [
    Experiment(
        name="MAPS:relations",
        title="Relations in heads",
        source=f"{SOURCE}, §3.1 and appendix (relation scores)",
        protocol=(
            "The share of a relation's pairs whose target is in the top 10 (copying: top 1) tokens to which the best head maps the source; "
            "weights as stored. Control: the same head with shuffled targets."
        ),
        run=run_relations,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("relations",),
    ),
    Experiment(
        name="MAPS:suppression",
        title="Suppression of relations in heads",
        source=f"{SOURCE}, §3.1 and appendix (suppression scores)",
        protocol=(
            "The share of a relation's pairs whose target is among the 10 (copying: 1) tokens with the lowest scores for the source; weights "
            "as stored. Control: the same head with shuffled targets."
        ),
        run=run_suppression,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
        needs=("relations",),
    ),
    Experiment(
        name="MAPS:operations",
        title="Salient operations of heads",
        source=f"{SOURCE}, §3.2 (salient operations)",
        protocol=(
            "The 30 tokens that a head amplifies most, and the top 10 tokens to which it maps each: how many are mapped to themselves. "
            "Control: random tokens."
        ),
        run=run_operations,
    ),
]
