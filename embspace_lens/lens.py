"""EmbeddingLens: one model read in embedding space."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from .demo.catalog import frequent_words
from .errors import EmbspaceError
from .loading import load_model
from .readings.base import BaseLens
from .readings.components import list_components
from .readings.directions import read_directions
from .readings.heads import read_ov, read_qk, read_subheads
from .readings.neurons import read_neurons
from .readings.singular_directions import read_singular
from .readings.token_search import search_token
from .space.embedding_space import EmbeddingSpace, Inverse, Space
from .space.embeddings import Score, unembedding_rows
from .space.masks import NAMED_MASKS, Chosen, choose_tokens
from .space.vocabulary import Vocabulary
from .tables.selection import Select
from .weights.effective import Side, Weights

MASKS = {**NAMED_MASKS, "frequent": frequent_words}


@dataclass(frozen=True, init=False, repr=False, eq=False)
class EmbeddingLens(BaseLens):
    r"""Read a transformer's weights as tokens, with no forward pass.

    Every parameter lives in the residual stream, as token embeddings do, so it can be scored against every token:
    what listens is read through E', what writes through E.

    .. math:: s_\mathrm{read}(w) = w E', \qquad s_\mathrm{write}(w) = w E, \qquad E \in \mathbb{R}^{d_\mathrm{model} \times d_\mathrm{vocab}}

    The lens holds references and copies nothing; reading never changes the model and never runs it.

    Args:
        model: A TransformerBridge or a HookedTransformer, in any state (raw, compatibility mode, folded); or `Weights`.
        tokenizer: Its tokenizer, if not `model.tokenizer`; without any, a token's string is its id.
        space: `"circuit"` reads through W_E and writes through W_U; `"unembed"` is W_U for both (the paper's single E);
            `"embed"` is W_E for both. Or an `EmbeddingSpace`, whose tokens, inverse and score are then used.
        inverse: The right inverse E' through which reading weights are projected: `"transpose"` or `"pinv"`.
        fold_ln: Multiply in the norms' gains and centre behind LayerNorms; False reads the weights as stored.
        vocabulary: The tokens to read: None for all, `"ascii"`, `"words"` (whole words), `"trained"` (not under-trained),
            several (`"words & trained"`), a `TokenMask`, a boolean mask `[d_vocab]`, or tokens as ids or strings.
        score: `"dot"`, `"centered"` (embeddings less their mean over the mask) or `"cosine"` (to centred embeddings).

    Attributes:
        name: The model's name.
        weights: Its effective weights, `weights.W_Q(layer)` … `weights.W_OV(layer)`.
        space: The embedding space, for tensors rather than tables.
        vocabulary: Its tokens as strings.
        mask: The name of the tokens that are read, `all` by default.

    Raises:
        EmbspaceError: If the model cannot be read, or an option is unknown.

    Example:
        >>> lens = EmbeddingLens(model)
        >>> lens.neurons(layer=0, k=1).columns.tolist()
        ['layer', 'neuron', 'weight', 'rank', 'token_index', 'token_string', 'score']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space. https://arxiv.org/abs/2209.02535
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        space: Space | EmbeddingSpace = "circuit",
        inverse: Inverse = "transpose",
        fold_ln: bool = True,
        vocabulary: Chosen = None,
        score: Score = "dot",
    ) -> None:
        weights = model if isinstance(model, Weights) else Weights(model, fold_ln=fold_ln)
        tokens = Vocabulary(tokenizer or getattr(weights.model, "tokenizer", None), weights.d_vocab, weights.name)
        if not isinstance(space, EmbeddingSpace):
            token_ids, mask = choose_tokens(tokens, vocabulary, lambda: (weights.W_E, unembedding_rows(weights)), MASKS)
            space = EmbeddingSpace(weights, space=space, inverse=inverse, score=score, token_ids=token_ids, mask=mask)
        super().__init__(weights, space, tokens)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, device: str | None = None, dtype: Any = None, **options: Any
    ) -> "EmbeddingLens":
        """Load a model and read it.

        Args:
            name: A demo model (`"reviews-small-0"`, offline), a local folder (a model's, or a tuned demo classifier's), or a hub model, which TransformerLens downloads.
            device: Where to put it; TransformerLens's choice by default, the CPU for demo models.
            dtype: Its precision, such as `torch.bfloat16`; float32 by default.
            **options: As for `EmbeddingLens(model, …)`.

        Raises:
            EmbspaceError: If there is no such model.

        Example:
            >>> EmbeddingLens.from_pretrained("reviews-small-0")
            EmbeddingLens(reviews-small-0: 4 layers, 6 heads, 768 neurons, 7168 tokens; reads W_E, writes W_U; norms folded)
        """
        return cls(load_model(name, device=device, dtype=dtype), **options)

    def __repr__(self) -> str:
        w, s = self.weights, self.space
        d_mlp = self._d_mlp()
        shape = [f"{w.n_layers} layers", f"{w.n_heads} heads"] + ([f"{d_mlp} neurons"] if d_mlp else [])
        tokens = f"{s.n_tokens} tokens" if self.mask == "all" else f"{s.n_tokens} of {s.d_vocab} tokens ({self.mask})"
        reads = {"circuit": "W_E", "unembed": "W_U", "embed": "W_E"}[s.kind]
        writes = {"circuit": "W_U", "unembed": "W_U", "embed": "W_E"}[s.kind]
        reads += " (pinv)" if s.inverse == "pinv" else ""
        more = "" if s.score == "dot" else f"; {s.score}"
        folded = "norms folded" if w.fold_ln else "as stored"
        return (
            f"EmbeddingLens({self.name}: {', '.join([*shape, tokens])}; reads {reads}, writes {writes}{more}; {folded})"
        )

    def _d_mlp(self) -> int:
        """How many neurons the first MLP has (one routed expert in a mixture); 0 if there is none that can be read."""
        for layer in self.weights.layers_with("mlp")[:1]:
            try:
                return self.weights.d_mlp(layer, self.weights.experts(layer)[-1])
            except EmbspaceError:
                return 0
        return 0

    def neurons(
        self,
        layer: Select = None,
        neuron: Select = None,
        *,
        expert: Select = None,
        weight: Any = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read MLP neurons as lists of tokens.

        A neuron listens through a column of W_in (and W_gate) and speaks through a row of W_out:

        .. math:: s_\mathrm{in} = W_\mathrm{in}[:, n]\, E', \qquad s_\mathrm{out} = W_\mathrm{out}[n]\, E

        Args:
            layer: Which blocks, numbered as in `blocks.{layer}`; all of them by default.
            neuron: Which neurons of each.
            expert: Which experts of a mixture; −1 for what every token passes.
            weight: `"W_in"`, `"W_gate"`, `"W_out"`, or several; all that the model has by default.
            k: How many tokens to keep for each direction.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (layer, neuron, weight, rank), in a mixture of experts per (layer, expert, neuron, weight, rank), with
            `token_index`, `token_string` and `score`.

        Raises:
            EmbspaceError: If the model has no such layer, neuron or weight, or fewer than k tokens are read.

        Example:
            >>> lens.neurons(layer=0, neuron=3, weight="W_out", k=2)[["neuron", "rank"]].values.tolist()
            [[3, 0], [3, 1]]

        References:
            Geva et al. (2021), Transformer Feed-Forward Layers Are Key-Value Memories. https://arxiv.org/abs/2012.14913
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.2 and Table 1.
        """
        return read_neurons(self, layer, neuron, expert=expert, weight=weight, k=k, largest=largest)

    def subheads(
        self, layer: Select = None, head: Select = None, *, weight: Any = None, k: int = 10, largest: bool = True
    ) -> pd.DataFrame:
        r"""Read the columns of W_Q, W_K and W_V and the rows of W_O, one by one.

        .. math:: s = W_V[:, i]\, E', \qquad s = W_O[i]\, E

        Args:
            layer: Which blocks; all of them by default.
            head: Which query heads; with grouped queries, heads of a group share their W_K and W_V.
            weight: `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; all by default.
            k: How many tokens to keep for each direction.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (layer, head, subhead, weight, rank), with `token_index`, `token_string` and `score`.

        Raises:
            EmbspaceError: If the model has no such layer or head, or the block's attention cannot be read.

        Example:
            >>> lens.subheads(layer=0, head=0, weight="W_V", k=1).shape[0] == lens.weights.W_V(0).shape[-1]
            True

        References:
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.1 and Table 1.
        """
        return read_subheads(self, layer, head, weight=weight, k=k, largest=largest)

    def ov(self, layer: Select = None, head: Select = None, *, k: int = 10, largest: bool = True) -> pd.DataFrame:
        r"""Read what each head moves: the best pairs of attended-from and promoted tokens.

        .. math:: s(\mathrm{src}, \mathrm{dest}) = E'_\mathrm{src}\, W_V W_O\, E_\mathrm{dest}

        The best pairs are exact, and no `d_vocab × d_vocab` matrix is built (`topk.top_pairs`).

        Args:
            layer: Which blocks; all of them by default.
            head: Which query heads.
            k: How many pairs to keep for each head.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (layer, head, weight, rank), with `dest_token_*`, `src_token_*` and `score`; `weight` is W_OV.

        Raises:
            EmbspaceError: If the model has no such layer or head, or the block's attention cannot be read.

        Example:
            >>> lens.ov(layer=0, head=[0, 1], k=3)["head"].tolist()
            [0, 0, 0, 1, 1, 1]

        References:
            Elhage et al. (2021), A Mathematical Framework for Transformer Circuits. Dar et al. (2023), §3.1.
        """
        return read_ov(self, layer, head, k=k, largest=largest)

    def qk(
        self,
        layer: Select = None,
        head: Select = None,
        *,
        distance: int | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read whom each head attends to: the best pairs of query and key tokens, position apart or at a distance.

        .. math:: s(\mathrm{dest}, \mathrm{src}) = E'_\mathrm{dest}\, W_Q W_K^\top\, E'^\top_\mathrm{src}

        Rotary positions turn queries and keys by their places, so that a score depends on how far apart the two are; at a
        distance Δ the form is as low-rank as without:

        .. math:: s_\Delta(\mathrm{dest}, \mathrm{src}) = E'_\mathrm{dest}\, W_Q R(\Delta) W_K^\top\, E'^\top_\mathrm{src}

        Args:
            layer: Which blocks; all of them by default.
            head: Which query heads.
            distance: Of models with rotary positions: how many tokens the key stands before the query; 0 is the query's own
                place, where nothing is turned. None leaves positions out.
            k: How many pairs to keep for each head.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (layer, head, weight, rank), with `dest_token_*` (query), `src_token_*` (key) and `score`, before the
            division by √d_head; `weight` is W_QK.

        Raises:
            EmbspaceError: If the model has no such layer or head, or the block's attention cannot be read; with a distance, if its
                positions are not rotary.

        Example:
            >>> lens.qk(layer=0, head=0, k=2)["rank"].tolist()
            [0, 1]

        References:
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.1 and Appendix A.
            Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding. https://arxiv.org/abs/2104.09864
        """
        return read_qk(self, layer, head, distance=distance, k=k, largest=largest)

    def singular(
        self, layer: Select = None, head: Select = None, *, weight: str = "W_OV", n_directions: int = 10, k: int = 10
    ) -> pd.DataFrame:
        r"""Read the singular directions of a weight, strongest first.

        .. math:: W_{OV} = U S V^\top: \qquad s_\mathrm{read} = u_i E', \qquad s_\mathrm{write} = v_i E

        A pair (u, v) stands for (−u, −v) as well; the sign shown gives the last side's strongest token a positive score.

        Args:
            layer: Which blocks; all of them by default.
            head: Which query heads, for weights that have heads.
            weight: `"W_OV"`, `"W_QK"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, `"W_in"`, `"W_gate"` or `"W_out"`.
            n_directions: How many directions of each head (or MLP).
            k: How many tokens to keep for each direction and side.

        Returns:
            One row per (layer, head, weight, component, side, rank), in a mixture of experts with `expert`; `head` is −1 for
            weights of the MLP. With `token_index`, `token_string`, `score` and `singular_value`.

        Raises:
            EmbspaceError: If the model has no such layer, head or weight.

        Example:
            >>> lens.singular(layer=0, head=0, n_directions=1, k=1)["side"].tolist()
            ['read', 'write']

        References:
            Millidge & Black (2022), The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable.
        """
        return read_singular(self, layer, head, weight=weight, n_directions=n_directions, k=k)

    def directions(
        self,
        vectors: Any,
        *,
        names: Sequence[str] | None = None,
        side: Side = "write",
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read any residual vectors: sparse autoencoders, transcoders, probes, steering vectors, transformer factors.

        .. math:: s = xE

        Args:
            vectors: `[n, d_model]` or `[d_model]`, a tensor or anything that becomes one; or the object itself: an SAELens
                autoencoder or transcoder (anything with `W_dec` and `W_enc`, or `decoder` and `encoder` layers), or `Factors`.
            names: A name for each; by default their numbers, written with equally many digits so that they sort.
            side: `"write"` for what is added to the stream (decoders), `"read"` for what listens to it (encoders).
            k: How many tokens to keep for each.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (direction, rank), with `token_index`, `token_string` and `score`, sorted by name.

        Raises:
            EmbspaceError: If the width is not d_model, an entry is NaN, or the names do not fit.

        Example:
            >>> lens.directions(lens.weights.W_out(0)[:2], names=["a", "b"], k=1)["direction"].tolist()
            ['a', 'b']
        """
        return read_directions(self, vectors, names=names, side=side, k=k, largest=largest)

    def search(
        self, token: str | int, layer: Select = None, *, weight: Any = None, k: int = 10, largest: bool = True
    ) -> pd.DataFrame:
        """Ask who reads or writes a token: the directions that score it highest, over all layers.

        Args:
            token: Its exact string (mind the leading space) or its id.
            layer: Which blocks; all of them by default.
            weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; all by default.
            k: How many directions to keep for each weight.
            largest: The highest scores first; with False, the lowest.

        Returns:
            One row per (weight, rank), with `layer`, `head`, `neuron` and `subhead` (−1 where the weight has none), the token
            and `score`; in a mixture of experts with `expert`.

        Raises:
            EmbspaceError: If the text is not one token, the lens does not read it, or there is no tokenizer.

        Example:
            >>> lens.search(5, weight="W_out", k=2)["rank"].tolist()
            [0, 1]
        """
        return search_token(self, token, layer, weight=weight, k=k, largest=largest)

    def components(self) -> pd.DataFrame:
        """List the weights: shape, norm, which norm's gain was folded, and what no weight holds.

        Returns:
            One row per (layer, weight), in a mixture of experts per (layer, expert, weight); W_E, W_U and W_pos have layer −1.
            A weight that cannot be read has 0 rows, a missing norm, and the reason in `note`.

        Example:
            >>> lens.components()["weight"].head(2).tolist()
            ['W_E', 'W_U']
        """
        return list_components(self)

    def project(self, x: Float[Tensor, "... d_model"], side: Side = "write") -> Float[Tensor, "... d_vocab"]:
        """Score every token for residual vectors, as a tensor; NaN for tokens that the lens does not read.

        Args:
            x: Residual vectors.
            side: `"write"` (through E) or `"read"` (through E').

        Returns:
            One score per vector and token.

        Raises:
            EmbspaceError: If the width is not d_model, or an entry is NaN.

        Example:
            >>> lens.project(lens.weights.W_out(0)).shape == (lens.weights.W_out(0).shape[0], len(lens.vocabulary))
            True
        """
        return self.space.project(x, side)

    def embed(self, scores: Float[Tensor, "... d_vocab"], side: Side = "write") -> Float[Tensor, "... d_model"]:
        """Go back from scores over tokens to residual vectors, through the chosen inverse.

        Args:
            scores: One per token; those of tokens that the lens does not read count for nothing.
            side: As in `project`.

        Returns:
            One residual vector per row of scores; with `inverse="pinv"`, the one that `project` came from.

        Raises:
            EmbspaceError: If there is not one score per token.

        Example:
            >>> lens.embed(lens.project(lens.weights.W_out(0))).shape == lens.weights.W_out(0).shape
            True
        """
        return self.space.embed(scores, side)
