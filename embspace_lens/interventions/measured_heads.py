"""What each head does on random words: which words it copies, and which positions it attends to."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..forward.batches import TokenBatch
from ..forward.repetitions import random_sequences, rows_of, second_after_first
from ..forward.runs import collect_activations
from ..lens import EmbeddingLens
from ..search.tiles import chunks, upcast
from ..space.embeddings import Embedding
from ..tables.checks import check_integer
from ..tables.frames import tidy
from ..tables.selection import Select
from ..weights.attention_scores import visible
from ..weights.hook_points import head_hook, pattern_hook

ATTENTION = ("attends_previous", "attends_first", "attends_duplicate", "attends_induction")


@torch.no_grad()
def head_measurements(
    lens: EmbeddingLens,
    layer: Select = None,
    head: Select = None,
    *,
    length: int | None = None,
    n_sequences: int = 32,
    n_queries: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Measure what each head copies and where it attends, in a forward pass on random words.

    Each text is a sequence of n different random words, repeated once: word i of the sequence is at position i and again at
    position i + n, after the token that begins texts if there is one. Attention is a mean over the queries of the second half:

    - `attends_previous`: to the previous position;
    - `attends_first`: to position 0;
    - `attends_duplicate`: to the same word in the first half, n positions back;
    - `attends_induction`: to the word after it, n − 1 positions back: the word that an induction head copies.

    Attention spread evenly over the visible positions gives each of them `uniform`. `copied` compares the words that a head
    attends to with those that it promotes. Of the word w with the most attention, it is the share of the lens's words that rank
    below w in what the head adds to the logits, :math:`z\, W_O W_U`; 0.5 is chance.

    Args:
        lens: The lens of a causal model, which runs; words are the tokens that it reads, without special tokens.
        layer: Which blocks; all by default.
        head: Which query heads.
        length: n; by default the largest that fits twice into the context window, at most 32.
        n_sequences: The number of texts.
        n_queries: The number of random positions at which `copied` is measured.
        seed: Seed of the words and positions.

    Returns:
        One row per (layer, head), with `copied`, `attends_previous`, `attends_first`, `attends_duplicate`,
        `attends_induction` and `uniform`.

    Raises:
        EmbspaceError: If the model is bidirectional, has no such layer or head, or does not expose its attention; or if an option
            is out of range.

    Example:
        >>> table = head_measurements(EmbeddingLens(demo.induction_model()))
        >>> table.nlargest(1, "attends_induction")[["layer", "head"]].values.tolist()
        [[1, 2]]

    References:
        Olsson et al. (2022), In-context Learning and Induction Heads, "Head activation evaluators". https://arxiv.org/abs/2209.11895
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Copying".
    """
    layers, heads = sorted(lens.weights.select_layers(layer, "attn")), sorted(lens.weights.select_heads(head))
    n_queries = check_integer("n_queries", n_queries, minimum=1)
    words = random_sequences(lens.model, lens.space.token_ids, n_sequences, length, seed)
    columns = ["layer", "head", "copied", *ATTENTION, "uniform"]
    if not layers or not heads:
        return tidy(columns, [])
    batch, n = second_after_first(lens.model, words, words), words.shape[1]
    measured = _Measurements(lens, layers, batch, n, n_queries, seed)
    # One block's attention is held at a time.
    bytes_per_text = 4 * lens.weights.n_heads * batch.tokens.shape[1] ** 2
    with tqdm(total=len(batch), desc="head_measurements", unit="text", disable=None, leave=False) as progress:
        for rows in chunks(len(batch), bytes_per_text, scale=4.0):
            measured.run(rows)
            progress.update(rows.stop - rows.start)
    second = torch.arange(batch.tokens.shape[1])[-n:]

    def blocks() -> Iterator[dict[str, Any]]:
        for index in tqdm(layers, desc="copied words", unit="layer", disable=None, leave=False):
            seen = visible(lens.weights, index, second[:, None], torch.arange(batch.tokens.shape[1]))
            means = measured.attention[index] / (len(batch) * n)
            copied = measured.copied(index, heads)
            yield {
                "layer": index,
                "head": heads,
                "copied": copied,
                "uniform": float((1 / seen.sum(dim=1)).mean()),
                **{name: means[i, heads] for i, name in enumerate(ATTENTION)},
            }

    return tidy(columns, blocks())


class _Measurements:
    """Sums of attention by layer, and the outputs and most attended words of heads at random positions."""

    def __init__(
        self, lens: EmbeddingLens, layers: list[int], batch: TokenBatch, n: int, n_queries: int, seed: int
    ) -> None:
        self._lens, self._batch, self._n = lens, batch, n
        own = batch.mask.nonzero()
        chosen = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[:n_queries]
        self._queries = own[chosen.sort().values]
        self.attention = {index: torch.zeros(len(ATTENTION), lens.weights.n_heads).double() for index in layers}
        self._words: dict[int, list[Tensor]] = {index: [] for index in layers}
        self._outputs: dict[int, list[Tensor]] = {index: [] for index in layers}

    def run(self, rows: slice) -> None:
        """Run the model on some of the texts, and add what is measured there.

        Raises:
            EmbspaceError: If the architecture does not expose its attention.
        """
        weights, fired = self._lens.weights, set()
        batch = rows_of(self._batch, rows)
        is_here = (self._queries[:, 0] >= rows.start) & (self._queries[:, 0] < rows.stop)
        example, pos = (self._queries[is_here] - torch.tensor([rows.start, 0])).T

        def add_attention(index: int) -> Callable[..., None]:
            def add(value: Tensor, hook: Any) -> None:
                n_pos = batch.tokens.shape[1]
                self._check(value, patterns[index], (len(batch), weights.n_heads, n_pos, n_pos))
                fired.add(patterns[index])
                self.attention[index] += self._attention_sums(value)
                to_words = value[example, :, pos].masked_fill(~batch.mask[example, None].to(value.device), -1)
                attended = to_words.argmax(dim=-1).cpu()
                self._words[index].append(batch.tokens[example[:, None], attended])

            return add

        patterns = {index: pattern_hook(weights, index) for index in self.attention}
        outputs = {index: head_hook(weights, index) for index in self.attention}
        hooks = [(patterns[index], add_attention(index)) for index in self.attention]
        # In some architectures, the attention of a block fires after its outputs.
        last = patterns[max(patterns)]
        values = collect_activations(self._lens.model, batch, [*outputs.values(), last], hooks=hooks)
        if missing := sorted(set(patterns.values()) - fired):
            raise errors.hook_did_not_fire(missing)
        for index, name in outputs.items():
            value = values[name]
            self._check(value, name, (*batch.tokens.shape, *weights.W_O(index).shape[:2]))
            self._outputs[index].append(upcast(value[example, pos]))

    def _check(self, value: Tensor, hook: str, shape: tuple[int, ...]) -> None:
        if value.shape != shape:
            raise errors.unsupported(f"The value at {hook}", f"its shape is {tuple(value.shape)} and not {shape}")

    def _attention_sums(self, pattern: Float[Tensor, "batch n_heads pos pos"]) -> Float[Tensor, "4 n_heads"]:
        """The sums over texts and queries of the second half, in the order of ATTENTION."""
        n = self._n
        by_distance = {back: pattern.diagonal(-back, 2, 3)[..., -n:] for back in (1, n, n - 1)}
        sums = [by_distance[1], pattern[:, :, -n:, 0], by_distance[n], by_distance[n - 1]]
        return torch.stack([upcast(part).sum(dim=(0, 2)) for part in sums]).double().cpu()

    def copied(self, layer: int, heads: list[int]) -> Float[Tensor, " n_heads"]:
        """The mean share of words below the most attended word in what each head adds to the logits."""
        weights, token_ids = self._lens.weights, self._lens.space.token_ids
        stored, norm = weights.unembedding
        unembedding = Embedding(stored.T, norm, token_ids)
        words, outputs = torch.cat(self._words[layer]), torch.cat(self._outputs[layer])
        W_O = weights.W_O(layer)
        shares = []
        for h in heads:
            rows = unembedding.scores(W_O[h].to(unembedding.device, unembedding.dtype)).T
            z = outputs[:, h].to(rows)
            own = torch.searchsorted(token_ids, words[:, h].contiguous()).to(rows.device)
            of_word = (z * rows[own]).sum(dim=1, keepdim=True)
            below = torch.zeros(len(z), device=rows.device)
            for chunk in chunks(len(rows), 4 * len(z)):
                is_own = torch.arange(chunk.start, chunk.stop, device=rows.device) == own[:, None]
                below += ((z @ rows[chunk].T < of_word) & ~is_own).sum(dim=1)  # rounding may place a word below itself
            shares.append(float(below.mean()) / max(1, len(rows) - 1))
        return torch.tensor(shares)
