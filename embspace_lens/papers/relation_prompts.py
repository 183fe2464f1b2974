"""MAPS, dynamic part: static scores of heads compared with their outputs in forward passes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..circuits.relations import source_vectors
from ..forward.batches import TokenBatch
from ..forward.runs import collect_activations
from ..lens import EmbeddingLens
from ..weights.configuration import prepends_bos
from ..weights.hook_points import head_hook
from .experiment import Experiment, Findings, Setting, figures
from .relation_tables import SOURCE, TEMPLATES, enough, published, raw_weights, relations_of, single_token_pairs, top_k

CONTEXTS = ("without context", "with context")
KINDS = ("hits", "score")
Scores = dict[str, Float[np.ndarray, " n_heads_of_all_blocks"]]
"""By kind, a number for each head: the true targets' and, with the suffix `control`, the mean over shuffled targets."""


def run(setting: Setting) -> Findings:
    """Correlate static and dynamic scores over heads, for each relation."""
    lens = raw_weights(setting)
    relations = {name: pairs for name, pairs in relations_of(setting).items() if enough(lens, pairs)}
    rows = []
    for name in tqdm(sorted(relations), desc="prompts", unit="relation", disable=None, leave=False):
        pairs = single_token_pairs(lens, relations[name])
        static = static_scores(lens, pairs, top_k(name))
        dynamic = [dynamic_scores(lens, pairs, template, top_k(name)) for template in TEMPLATES]
        for kind in KINDS:
            for i, context in enumerate(CONTEXTS):
                repeated = np.tile(static[kind], len(TEMPLATES))
                by_sample = {
                    sample: np.concatenate([scores[i][kind + sample] for scores in dynamic])
                    for sample in ("", " control")
                }
                rows.append(
                    {
                        "measure": f"{name}: {kind}, {context}",
                        "value": correlation(repeated, by_sample[""]),
                        "control": correlation(repeated, by_sample[" control"]),
                        "published": published(name, "promotion")[1 + i] if kind == "hits" else np.nan,
                        "n": len(repeated),
                    }
                )
    return Findings(
        figures("MAPS:dynamic", setting, _with_means(rows)),
        notes=(
            "Published: GPT-2 xl, from the authors' repository. n: heads times prompts.",
            "Where no head has a hit, the correlation of hits is empty; `score` is the target's standardized score, which has no such limit.",
        ),
    )


def _with_means(rows: list[dict]) -> list[dict]:
    """The means over the relations that have a correlation, then the rows."""
    means = []
    for kind in KINDS:
        for context in CONTEXTS:
            part = [
                row for row in rows if row["measure"].endswith(f": {kind}, {context}") and np.isfinite(row["value"])
            ]
            if part:
                mean = {name: float(np.mean([row[name] for row in part])) for name in ("value", "control", "published")}
                label = f"mean over {len(part)} relations: {kind}, {context}"
                means.append({"measure": label, **mean, "n": part[0]["n"]})
    return means + rows


def static_scores(lens: EmbeddingLens, pairs: Sequence[tuple[int, int]], k: int, *, first_mlp: bool = True) -> Scores:
    """How well each head maps the sources to the targets by its weights alone."""
    source, target = torch.tensor(pairs).T.contiguous()
    x = source_vectors(lens, source, range(lens.weights.n_layers), first_mlp)
    outputs = (
        x(layer).to(form.A) @ form.A[head] @ form.B[head]
        for layer in lens.weights.layers_with("attn")
        for form in [lens.weights.W_OV(layer)]
        for head in range(lens.weights.n_heads)
    )
    return _scores(lens, outputs, target, k)


@torch.no_grad()
def dynamic_scores(
    lens: EmbeddingLens, pairs: Sequence[tuple[int, int]], template: str, k: int
) -> tuple[Scores, Scores]:
    """How well each head's output at the last position of a prompt predicts the targets: without and with context.

    With context, the output is that of the run. Without, the head attends to the source alone, while its input is that of the
    run: the output is then the value vector at the source, times W_O.
    """
    source, target = torch.tensor(pairs).T.contiguous()
    batch, position = prompts(lens, source, template)
    weights, layers = lens.weights, lens.weights.layers_with("attn")
    hooks = [(head_hook(weights, layer, "W_V"), head_hook(weights, layer, "W_O")) for layer in layers]
    values = collect_activations(lens.model, batch, [hook for pair in hooks for hook in pair])

    def outputs(with_context: bool) -> Iterator[Float[Tensor, "n d_model"]]:
        for layer, pair in zip(layers, hooks):
            form = weights.W_OV(layer)
            value = values[pair[with_context]][:, -1 if with_context else position]
            heads = value.flatten(1).unflatten(1, (-1, form.B.shape[1]))
            heads = heads.repeat_interleave(weights.n_heads // heads.shape[1], dim=1)  # shared key and value heads
            for head in range(weights.n_heads):
                yield heads[:, head].to(form.B) @ form.B[head]

    return _scores(lens, outputs(False), target, k), _scores(lens, outputs(True), target, k)


def prompts(lens: EmbeddingLens, source: Int[Tensor, " n"], template: str) -> tuple[TokenBatch, int]:
    """A template with each source token in place of `<X>`, and the position of the source."""
    tokenizer = lens.model.tokenizer
    before, after = (
        tokenizer.encode(part, add_special_tokens=False)
        for part in (template.split(" <X>")[0], template.split("<X>")[1])
    )
    first = [tokenizer.bos_token_id] if prepends_bos(lens.model) and tokenizer.bos_token_id is not None else []
    n, position = len(source), len(first) + len(before)
    tokens = torch.tensor([*first, *before, 0, *after]).repeat(n, 1)
    tokens[:, position] = source
    zeros = torch.zeros(n, dtype=torch.long)
    batch = TokenBatch(
        torch.arange(n), zeros, tokens, torch.ones_like(tokens, dtype=torch.bool), zeros + tokens.shape[1]
    )
    return batch, position


def _scores(
    lens: EmbeddingLens, outputs: Iterator[Float[Tensor, "n d_model"]], target: Int[Tensor, " n"], k: int
) -> Scores:
    """The share of hits and the mean standardized score of the targets, for the output vectors of each head."""
    rows = lens.space.rows("write")
    columns = torch.searchsorted(lens.space.token_ids, target)
    values: dict[str, list[float]] = {kind + sample: [] for kind in KINDS for sample in ("", " control")}
    for output in outputs:
        scores = rows.scores(output.to(rows.device, rows.dtype))
        is_top = torch.zeros_like(scores).scatter_(1, scores.topk(k, dim=1).indices, 1.0)
        deviation = scores.std(dim=1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        for kind, matrix in (("hits", is_top), ("score", (scores - scores.mean(dim=1, keepdim=True)) / deviation)):
            of_targets = matrix[:, columns]  # entry (i, j): target of pair j for the source of pair i
            values[kind].append(of_targets.diagonal().mean().item())
            values[f"{kind} control"].append(of_targets.mean().item())
    return {name: np.array(column) for name, column in values.items()}


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation; NaN if one of the two is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


EXPERIMENTS = [
    Experiment(
        name="MAPS:dynamic",
        title="Static scores and the outputs of heads",
        source=f"{SOURCE}, §3.3 and appendix (correlation with outputs of heads)",
        protocol=(
            "Pearson correlation, over heads and four prompts, of the static relation score with the score of the head's output at the last position: "
            "with context (the head's output in the run) and without (the head attends to the source alone). Control: the dynamic score with "
            "shuffled targets."
        ),
        run=run,
        needs=("relations",),
    )
]
