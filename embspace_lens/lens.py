"""EmbeddingLens: the weights of one model as tables of tokens."""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from . import errors
from .demo.catalog import frequent_words
from .errors import EmbspaceError
from .loading import load_model
from .readings.base import AnyWeight, BaseLens
from .readings.components import list_components
from .readings.directions import read_directions
from .readings.heads import read_ov, read_qk, read_subheads
from .readings.neurons import read_neurons
from .readings.rows import read_rows
from .readings.singular_directions import read_singular
from .readings.token_search import search_token
from .space.embedding_space import EmbeddingSpace, Inverse, Space
from .space.embeddings import Score, unembedding_rows
from .space.feature_rows import FeatureDictionary, folded_into
from .space.feature_space import FeatureSpace
from .space.masks import NAMED_MASKS, VocabularyOption, choose_tokens
from .space.same_tokens import SameRule
from .space.vocabulary import Vocabulary
from .tables.selection import Select
from .weights.effective import Weights
from .weights.host import AttentionWeight, MLPWeight
from .weights.model_size import Offload
from .weights.parameter_names import Side
from .weights.weight_difference import WeightDifference

MASKS = {**NAMED_MASKS, "frequent": frequent_words}
"""The masks that `vocabulary=` accepts by name."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class EmbeddingLens(BaseLens):
    r"""Read a transformer's weights as tokens, without a forward pass.

    Parameters are vectors of the residual stream, like token embeddings, so each has a score for every token. Vectors that
    read from the residual stream are projected through E', vectors that write to it through E:

    .. math:: s_\mathrm{read}(w) = w E', \qquad s_\mathrm{write}(w) = w E, \qquad E \in \mathbb{R}^{d_\mathrm{model} \times d_\mathrm{vocab}}

    A lens holds references to the model and copies nothing: after an edit of the model, it reads the edited weights. Readings
    never change the model and never run it. A lens is immutable; make another one for other options. A lens can be copied,
    but not serialised: in another process, make it again from the model's name.

    Tables are plain dataframes. `table.embspace.show()` shows tokens as chips, `.label()` gives one label per neuron, head or
    direction, and `.plot()` draws the table.

    Args:
        model: A TransformerBridge or a HookedTransformer, with or without weight processing; or `Weights`.
        tokenizer: The tokenizer; `model.tokenizer` by default. Without a tokenizer, the string of a token is its id.
        space: `"circuit"` reads through W_E and writes through W_U; `"unembed"` uses W_U for both (the paper's single E);
            `"embed"` uses W_E for both. Or an `EmbeddingSpace`, whose tokens, inverse and score are then used.
        inverse: The right inverse E' for reading weights: `"transpose"` or `"pinv"`.
        fold_ln: Fold the gains of norms into the weights, and centre weights that read through a LayerNorm. With False, the
            weights as stored.
        vocabulary: The tokens to read: None for all; the name of a mask, `"ascii"`, `"words"` (whole words), `"trained"` (not
            under-trained) or `"frequent"` (whole words that are frequent in the training data of the demo models, for demo
            models only); several names (`"words & trained"`); a `TokenMask`; a boolean mask `[d_vocab]`; or tokens as ids or
            strings.
        score: `"dot"`, `"centered"` (the mean embedding of the selected tokens is subtracted) or `"cosine"` (with centred
            embeddings; a pair's bilinear form is divided by its largest singular value, so that its score is between −1 and 1).
        name: The lens's name in tables, figures and messages; the model's name by default.

    Attributes:
        model: The TransformerLens model.
        name: The lens's name.
        weights: The effective weights, `weights.W_Q(layer)` … `weights.W_OV(layer)`.
        space: The embedding space, for tensors instead of tables.
        vocabulary: The tokens as strings.
        mask: The name of the selected tokens; `all` by default.

    Raises:
        EmbspaceError: If the model cannot be read, or an option is unknown.

    Example:
        >>> lens = EmbeddingLens(model)
        >>> lens.neurons(layer=0, k=1).columns.tolist()
        ['layer', 'neuron', 'weight', 'rank', 'token_index', 'token_string', 'score']

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §3. https://arxiv.org/abs/2209.02535
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
        vocabulary: VocabularyOption = None,
        score: Score = "dot",
        name: str | None = None,
    ) -> None:
        weights = copy.copy(model) if isinstance(model, Weights) else Weights(model, fold_ln=fold_ln)
        weights.name = weights.name if name is None else name
        tokens = Vocabulary(tokenizer or weights.tokenizer, weights.d_vocab, weights.name)
        if not isinstance(space, EmbeddingSpace):
            token_ids, mask = choose_tokens(tokens, vocabulary, lambda: (weights.W_E, unembedding_rows(weights)), MASKS)
            space = EmbeddingSpace(weights, space=space, inverse=inverse, score=score, token_ids=token_ids, mask=mask)
        super().__init__(weights, space, tokens)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        offload: Offload = "auto",
        cache: bool = True,
        **options: Any,
    ) -> "EmbeddingLens":
        """Load a model and make its lens; or leave the weights in their checkpoint, and read each when it is needed.

        With `offload=True`, a model of any size can be read: a reading takes the memory of the embeddings and of one weight.
        All readings are the same as those of a model in memory. Functions that run the model raise an error. From an address,
        only the weights that a reading needs are fetched. `lens.weights.bytes_read` is the number of bytes that were read, or
        fetched, so far.

        Args:
            name: A demo model (`"reviews-small-0"`, offline), a local folder (of a model, or of a tuned demo classifier), a GGUF
                file, a hub model, which TransformerLens downloads, or an address: `hf://organisation/model`, `https://…`, `s3://…`.
            device: The device; for demo models the CPU by default, for others the choice of TransformerLens.
            dtype: The precision, such as `torch.bfloat16`; float32 by default. Weights in a checkpoint keep a narrower
                stored precision until they are used.
            offload: Whether the weights stay in the checkpoint. With `"auto"`, if they would take more than 60 % of the free
                memory, with a warning. Those of quantised checkpoints, GGUF files and addresses always do.
            cache: Whether what is fetched from an address stays on disk for the next process, in `$EMBSPACE_LENS_CACHE`.
            **options: The options of `EmbeddingLens(model, …)`.

        Raises:
            EmbspaceError: If there is no such model, or it cannot be loaded.

        Example:
            >>> EmbeddingLens.from_pretrained("reviews-small-0")
            EmbeddingLens(reviews-small-0: 4 layers, 6 heads, 768 neurons, 7168 tokens; reads W_E, writes W_U; norms folded)
            >>> EmbeddingLens.from_pretrained("reviews-small-0", offload=True).weights.is_offloaded
            True
        """
        return cls(load_model(name, device=device, dtype=dtype, offload=offload, cache=cache), **options)

    def __repr__(self) -> str:
        weights, space = self.weights, self.space
        d_mlp = self._d_mlp()
        shape = [f"{weights.n_layers} layers", f"{weights.n_heads} heads", *([f"{d_mlp} neurons"] if d_mlp else [])]
        if not (space.features("read") and space.features("write")):
            n_read = len(space.ids("write" if space.features("read") else "read"))
            shape += [f"{n_read} tokens" if self.mask == "all" else f"{n_read} of {space.d_vocab} tokens ({self.mask})"]
        reads, writes = {"circuit": ("W_E", "W_U"), "unembed": ("W_U", "W_U"), "embed": ("W_E", "W_E")}[space.kind]
        reads, writes = self._named("read", reads), self._named("write", writes)
        reads += " (pinv)" if space.inverse == "pinv" else ""
        score = "" if space.score == "dot" else f"; {space.score}"
        folded = "norms folded" if weights.fold_ln else "as stored"
        # To compare two checkpoints on disk, all their weights would have to be read.
        if isinstance(weights, WeightDifference) and not weights.is_offloaded:
            unchanged = weights.unchanged_layers()
            which = f"{len(unchanged)} of {weights.n_layers} layers unchanged ({', '.join(map(str, unchanged))})"
            folded += f"; {which}" if unchanged else ""
        return f"EmbeddingLens({self.name}: {', '.join(shape)}; reads {reads}, writes {writes}{score}; {folded})"

    def __copy__(self) -> "EmbeddingLens":
        return self._rebuild(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "EmbeddingLens":
        return self._rebuild(copy.deepcopy(self.__dict__, memo))

    def _rebuild(self, fields: dict[str, Any]) -> "EmbeddingLens":
        """A lens with these fields."""
        lens = object.__new__(type(self))
        lens.__dict__.update(fields)
        return lens

    def __reduce__(self) -> Any:
        raise errors.not_serialisable(self.name)

    def _named(self, side: Side, matrix: str) -> str:
        """What one side's rows are: an embedding matrix, or a dictionary with what is folded into it."""
        features = self.space.features(side)
        if features is None:
            return matrix
        folded = folded_into(self.weights, features, side)
        return f"{features.name} ({len(features)} features{f'; {folded}' if folded else ''})"

    def _d_mlp(self) -> int:
        """How many neurons the first MLP has (for a mixture, its last expert); 0 if no MLP can be read."""
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
        weight: MLPWeight | Sequence[MLPWeight] | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read MLP neurons as lists of tokens.

        A neuron reads from the residual stream through a column of W_in (and of W_gate) and writes to it through a row of W_out:

        .. math:: s_\mathrm{in} = W_\mathrm{in}[:, n]\, E', \qquad s_\mathrm{out} = W_\mathrm{out}[n]\, E

        Args:
            layer: Which blocks, numbered as in `blocks.{layer}`; all by default.
            neuron: Which neurons of each block; all by default.
            expert: Which experts of a mixture of experts; −1 for dense MLPs and shared experts.
            weight: `"W_in"`, `"W_gate"`, `"W_out"`, or several; all that the model has by default.
            k: How many tokens to return for each direction.
            largest: The highest scores; with False, the lowest.

        Returns:
            One row per (layer, neuron, weight, rank), in a mixture of experts per (layer, expert, neuron, weight, rank), with
            `token_index`, `token_string` and `score`.

        Raises:
            EmbspaceError: If the model has no such layer, neuron or weight, or the lens reads fewer than k tokens.

        Example:
            >>> lens.neurons(layer=0, neuron=3, weight="W_out", k=2)[["neuron", "rank"]].values.tolist()
            [[3, 0], [3, 1]]

        References:
            Geva et al. (2021), Transformer Feed-Forward Layers Are Key-Value Memories. https://arxiv.org/abs/2012.14913
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.2 and Table 1.
        """
        return read_neurons(self, layer, neuron, expert=expert, weight=weight, k=k, largest=largest)

    def subheads(
        self,
        layer: Select = None,
        head: Select = None,
        *,
        weight: AttentionWeight | Sequence[AttentionWeight] | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read the single columns of W_Q, W_K and W_V and the single rows of W_O.

        .. math:: s = W_V[:, i]\, E', \qquad s = W_O[i]\, E

        Args:
            layer: Which blocks; all by default.
            head: Which query heads; all by default. With grouped-query attention, the heads of a group share W_K and W_V.
            weight: `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, or several; all by default.
            k: How many tokens to return for each direction.
            largest: The highest scores; with False, the lowest.

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

    def ov(
        self,
        layer: Select = None,
        head: Select = None,
        *,
        exclude_same: SameRule | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read OV circuits: the best pairs of a source token and the token that attending to it promotes.

        .. math:: s(\mathrm{src}, \mathrm{dest}) = E'_\mathrm{src}\, W_V W_O\, E_\mathrm{dest}

        The best pairs are exact, and the `d_vocab × d_vocab` matrix is never built (see `search.top_pairs`). With
        `score="cosine"`, embeddings are centred and normalised, and the form is divided by its largest singular value σ. The
        score is then between −1 and 1 and can be compared between heads and layers; `"dot"` and `"centered"` keep the norm of
        the head:

        .. math:: s_\mathrm{cosine}(\mathrm{src}, \mathrm{dest}) = \hat E'_\mathrm{src}\, W_V W_O\, \hat E_\mathrm{dest} / \sigma

        Args:
            layer: Which blocks; all by default.
            head: Which query heads; all by default.
            exclude_same: Pairs to leave out: `"exact"` for pairs of tokens with equal texts, `"fuzzy"` also for texts that differ
                only in case, in surrounding space, or in a regular English ending (walk, walks, walking; make, making; story,
                stories). This rule is about letters, not about meaning: it also leaves out numb, number. None keeps all pairs. The
                best of the remaining pairs are exact, too.
            k: How many pairs to return for each head.
            largest: The highest scores; with False, the lowest.

        Returns:
            One row per (layer, head, weight, rank), with `dest_token_*`, `src_token_*` and `score`; `weight` is W_OV.

        Raises:
            EmbspaceError: If the model has no such layer or head, the block's attention cannot be read, or there are fewer than
                k pairs.

        Example:
            >>> lens.ov(layer=0, head=[0, 1], k=3)["head"].tolist()
            [0, 0, 0, 1, 1, 1]

        References:
            Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "OV and QK circuits".
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.1.
        """
        return read_ov(self, layer, head, exclude_same=exclude_same, k=k, largest=largest)

    def qk(
        self,
        layer: Select = None,
        head: Select = None,
        *,
        distance: int | None = None,
        exclude_same: SameRule | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read QK circuits: the best pairs of a query token and the key token that it attends to.

        .. math:: s(\mathrm{dest}, \mathrm{src}) = E'_\mathrm{dest}\, W_Q W_K^\top\, E'^\top_\mathrm{src}

        Positions are left out by default. Rotary positions rotate queries and keys, so that scores depend on the distance
        between them; with a distance Δ, the rotation R(Δ) is included:

        .. math:: s_\Delta(\mathrm{dest}, \mathrm{src}) = E'_\mathrm{dest}\, W_Q R(\Delta) W_K^\top\, E'^\top_\mathrm{src}

        With `score="cosine"`, the score is divided by the largest singular value of the form, as in `ov`.

        Some models normalise queries and keys before their product (Qwen 3, Gemma 3, OLMo 2). Then scores are products of
        normalised queries and keys, as in a forward pass in which the residual stream holds the token's row E' alone:

        .. math:: s_\Delta(\mathrm{dest}, \mathrm{src}) = \mathrm{norm}_Q(\hat x_\mathrm{dest} W_Q + b_Q)\, R(\Delta)\,
                  \mathrm{norm}_K(\hat x_\mathrm{src} W_K + b_K)^\top, \qquad \hat x = E' / \mathrm{rms}(E')

        The length of E' has no effect on these scores. For models without a norm before attention (OLMo 2), x̂ is E', and the
        epsilons of norm_Q and norm_K are 0, because the length of the residual stream is unknown. In all models that normalise
        queries and keys, the score `"cosine"` is the cosine between the normalised query and key, in [−1, 1]. With
        `fold_ln=False`, these norms are left out.

        Args:
            layer: Which blocks; all by default.
            head: Which query heads; all by default.
            distance: For models with rotary positions: how many positions the key is before the query; 0 is the query's own
                position, without rotation. None leaves positions out.
            exclude_same: Pairs to leave out: `"exact"` for pairs of tokens with equal texts, `"fuzzy"` also for texts that differ
                only in case, in surrounding space, or in a regular English ending (walk, walks, walking; make, making; story,
                stories). This rule is about letters, not about meaning: it also leaves out numb, number. None keeps all pairs. The
                best of the remaining pairs are exact, too.
            k: How many pairs to return for each head.
            largest: The highest scores; with False, the lowest.

        Returns:
            One row per (layer, head, weight, rank), with `dest_token_*` (query), `src_token_*` (key) and `score`, without the
            factor 1/√d_head; `weight` is W_QK.

        Raises:
            EmbspaceError: If the model has no such layer or head, the block's attention cannot be read, or a distance is given
                and positions are not rotary, or scores at a distance depend on positions too.

        Example:
            >>> lens.qk(layer=0, head=0, k=2)["rank"].tolist()
            [0, 1]

        References:
            Dar et al. (2023), Analyzing Transformers in Embedding Space, §3.1 and Appendix A.
            Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding, §3.2. https://arxiv.org/abs/2104.09864
            Henry et al. (2020), Query-Key Normalization for Transformers, §3. https://arxiv.org/abs/2010.04245
        """
        return read_qk(self, layer, head, distance=distance, exclude_same=exclude_same, k=k, largest=largest)

    def singular(
        self,
        layer: Select = None,
        head: Select = None,
        *,
        weight: AnyWeight = "W_OV",
        n_directions: int = 10,
        k: int = 10,
    ) -> pd.DataFrame:
        r"""Read the singular directions of a weight, in the order of decreasing singular values.

        .. math:: W_{OV} = U S V^\top: \qquad s_\mathrm{read} = u_i E', \qquad s_\mathrm{write} = v_i E

        The pairs (u, v) and (−u, −v) are equivalent. The sign is chosen so that the strongest token of the last side has a
        positive score. W_QK is read without norms of queries and keys, which some models have (see `components`).

        Args:
            layer: Which blocks; all by default.
            head: Which query heads, for weights that have heads; all by default.
            weight: `"W_OV"`, `"W_QK"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, `"W_in"`, `"W_gate"` or `"W_out"`.
            n_directions: How many directions of each head (or MLP).
            k: How many tokens to return for each direction and side.

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
        names: Iterable[Any] | None = None,
        side: Side = "write",
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Read any residual vectors: sparse autoencoders, transcoders, probes, steering vectors, transformer factors.

        .. math:: s = xE

        Args:
            vectors: `[n, d_model]` or `[d_model]`, a tensor or values that can be converted to one; or an object: an SAELens
                autoencoder or transcoder (any object with `W_dec` and `W_enc`, or with `decoder` and `encoder` layers), or
                `Factors`; or a mapping from names to vectors.
            names: A name for each vector; its index by default, as text with leading zeros. If all names are integers, such as
                the indices of features, the column `direction` holds integers, otherwise text.
            side: `"write"` for vectors that are added to the residual stream (decoders), `"read"` for vectors that are
                multiplied with it (encoders).
            k: How many tokens to return for each vector.
            largest: The highest scores; with False, the lowest.

        Returns:
            One row per (direction, rank), with `token_index`, `token_string` and `score`, in the order of the vectors.

        Raises:
            EmbspaceError: If the width is not d_model, an entry is NaN or infinite, the numbers of names and vectors differ, or
                names are given for a mapping.

        Example:
            >>> lens.directions(lens.weights.W_out(0)[:2], names=["b", "a"], k=1)["direction"].tolist()
            ['b', 'a']
            >>> lens.directions({"difference": lens.weights.W_out(0)[1] - lens.weights.W_out(0)[0]}, k=1)["direction"].tolist()
            ['difference']
        """
        return read_directions(self, vectors, names=names, side=side, k=k, largest=largest)

    def search(
        self,
        token: Any,
        layer: Select = None,
        *,
        weight: AnyWeight | Sequence[AnyWeight] | None = None,
        k: int = 10,
        largest: bool = True,
    ) -> pd.DataFrame:
        r"""Find the components, over all layers, that score a token, several tokens or a vector highest.

        .. math:: \operatorname{top}_k \{ w_i \cdot e \}, \qquad e = \frac{1}{n} \sum_{j=1}^{n} e_{\mathrm{token}_j}

        The score for several tokens is the mean of their scores. A head's W_OV is scored by the best pair in which the token is
        the promoted one, its W_QK by the best pair in which the token is attended to (the key). Both are computed by a product of
        the form with e and an exact search over all tokens of the other side:

        .. math:: s_{OV} = \max_\mathrm{src} E'_\mathrm{src}\, W_V W_O\, e, \qquad s_{QK} = \max_\mathrm{dest} E'_\mathrm{dest}\, W_Q W_K^\top e

        Args:
            token: A token: its exact string, with the leading space, or its id. Or a list of tokens: their embeddings are averaged
                (centred and normalised, if the score is; in models with norms of keys, before these norms). Or a vector of
                d_model numbers, not all integers, in place of an embedding: the score is its inner product with each direction,
                or its cosine with `score="cosine"`.
            layer: Which blocks; all by default.
            weight: `"W_in"`, `"W_gate"`, `"W_out"`, `"W_Q"`, `"W_K"`, `"W_V"`, `"W_O"`, `"W_OV"`, `"W_QK"`, or several; all by
                default.
            k: How many components to return for each weight.
            largest: The highest scores; with False, the lowest (for heads, by their lowest pair).

        Returns:
            One row per (weight, rank), with `layer`, `head`, `neuron` and `subhead` (−1 for keys that the weight does not have),
            the token and `score`; in a mixture of experts with `expert`. For several tokens, `token_index` is −1 and
            `token_string` their texts, joined; for a vector it is "vector". `token_rank` is the place of a single token in the
            component's list of tokens; it is −1 otherwise. `dest_token_*` and `src_token_*` are the pair of a head; for other
            components they are −1 and empty.

        Raises:
            EmbspaceError: If a string is not one token, the lens does not read a token, a string is given without a tokenizer, or
                a vector does not have the width d_model; or a weight that is named is not supported. By default, weights
                that are not supported are left out, with a warning.

        Example:
            >>> lens.search(5, weight="W_out", k=2)["rank"].tolist()
            [0, 1]
            >>> lens.search(["w5", "w7"], weight="W_OV", k=1)["token_string"].tolist()
            ['w5+w7']
        """
        return search_token(self, token, layer, weight=weight, k=k, largest=largest)

    def read(self, rows: pd.DataFrame, *, suffix: str = "", k: int = 10, largest: bool = True) -> pd.DataFrame:
        """Read exactly the neurons, heads and sub-heads in the rows of a table, in their order.

        Rows with `neuron` are read as neurons, rows with `head` and `subhead` as sub-heads, and rows with `head` alone as heads
        (pairs of tokens). −1 or NaN means that a row does not have the key. If the table has a column `weight`, that weight of
        each row is read, otherwise all weights of the component: W_in, W_gate and W_out; W_Q, W_K, W_V and W_O; W_OV and W_QK.

        Args:
            rows: A table with `layer` and keys of components: of `search`, of `match_neurons`, of activation patching, or any
                other.
            suffix: Read the columns `layer`, `neuron` … with this suffix: `"_a"` or `"_b"` for a side of a comparison.
            k: How many tokens (or pairs) to return for each weight of each row.
            largest: The highest scores; with False, the lowest.

        Returns:
            One row per (row, weight, rank), where `row` is the position of a row in `rows`, with the row's keys and `score`. With
            `token_*` if the table has `neuron` or `subhead`, with `dest_token_*` and `src_token_*` if rows may be heads; if both
            may be, the columns that do not apply are −1 and empty. All other columns of `rows` follow; a column whose name the
            reading uses, such as the `score` of a search, gets the suffix `_given`. Components that occur several times are
            repeated.

        Raises:
            EmbspaceError: If `rows` is not a table of components, a row names none, or the model does not have it.

        Example:
            >>> matches = lens.search("w5", weight="W_out", k=3)
            >>> lens.read(matches, k=2)["neuron"].tolist() == matches["neuron"].repeat(2).tolist()
            True
        """
        return read_rows(self, rows, suffix=suffix, k=k, largest=largest)

    def with_features(
        self, source: FeatureDictionary | None = None, target: FeatureDictionary | None = None
    ) -> "EmbeddingLens":
        r"""Make a lens that reads weights as features of dictionaries (SAEs, transcoders, factors), in place of tokens.

        What is in the residual stream are the decoder rows of the source, in place of W_E; what reads it are the encoder columns
        of the target, in place of W_U:

        .. math:: s_\mathrm{read}(w) = W_\mathrm{dec}^\mathrm{source}\, w, \qquad s_\mathrm{write}(w) = w\, W_\mathrm{enc}^\mathrm{target}

        All readings work as before. In their tables, `feature_index` and `feature_label` take the place of `token_index` and
        `token_string`, and `src_feature_*` and `dest_feature_*` that of `src_token_*` and `dest_token_*`. If only one dictionary
        is given, the other side remains tokens; tables then have the columns of both, −1 and empty where they do not apply. In
        a search, a label or an index is looked up on each side.

        The norm between the stream and an encoder is folded in: `repr` states which. A large score does not say that two parts
        are ever active together; see `features.coactivation`.

        Args:
            source: What is in the stream, for weights that read from it; None for tokens.
            target: What reads the stream, for weights that write to it; None for tokens.

        Raises:
            EmbspaceError: If a dictionary has another width, or is of a block that the model does not have; if the target has
                no encoder; or if it was trained behind a gain that was folded into the model's weights.

        Example:
            >>> from embspace_lens import Features
            >>> axes = Features(torch.eye(lens.weights.d_model), torch.eye(lens.weights.d_model), name="axes")
            >>> lens.with_features(target=axes).neurons(layer=0, neuron=3, weight="W_out", k=1).columns.tolist()[4:]
            ['token_index', 'token_string', 'feature_index', 'feature_label', 'score']

        References:
            Ameisen et al. (2025), Circuit Tracing, "Global Weights". https://transformer-circuits.pub/2025/attribution-graphs/methods.html
        """
        if source is None and target is None:
            raise errors.no_dictionary_given()
        for dictionary in (source, target):
            if dictionary is not None and not isinstance(dictionary, FeatureDictionary):
                raise errors.not_a_dictionary(dictionary)
        tokens = self.space.tokens if isinstance(self.space, FeatureSpace) else self.space
        return self._rebuild({**self.__dict__, "space": FeatureSpace(self.weights, tokens, source, target)})

    def components(self) -> pd.DataFrame:
        """List the weights: their shapes, their norms, and which norm's gain was folded in.

        Returns:
            One row per (layer, weight), in a mixture of experts per (layer, expert, weight); W_E, W_U and W_pos have layer −1. A
            weight that cannot be read has 0 rows, `norm` NaN, and the reason in `note`.

        Example:
            >>> lens.components()["weight"].head(2).tolist()
            ['W_E', 'W_U']
        """
        return list_components(self)

    def project(
        self, x: Float[Tensor, "... d_model"] | Float[np.ndarray, "... d_model"], side: Side = "write"
    ) -> Float[Tensor, "... d_vocab"]:
        r"""Score every token for residual vectors, as a tensor.

        .. math:: s_\mathrm{write} = xE, \qquad s_\mathrm{read} = xE'

        Args:
            x: Residual vectors.
            side: `"write"` (through E) or `"read"` (through E').

        Returns:
            One score per vector and token; NaN for tokens that the lens does not read.

        Raises:
            EmbspaceError: If the width is not d_model, or an entry is NaN or infinite.

        Example:
            >>> lens.project(lens.weights.W_out(0)).shape == (lens.weights.W_out(0).shape[0], len(lens.vocabulary))
            True
        """
        return self.space.project(x, side)

    def embed(
        self, scores: Float[Tensor, "... d_vocab"] | Float[np.ndarray, "... d_vocab"], side: Side = "write"
    ) -> Float[Tensor, "... d_model"]:
        """Map scores over tokens back to residual vectors, through the chosen inverse.

        Args:
            scores: One score per token; scores of tokens that the lens does not read are ignored.
            side: As in `project`.

        Returns:
            One residual vector per row of scores. With `inverse="pinv"`, `embed(project(x))` is x for every x in the span of the
            embeddings.

        Raises:
            EmbspaceError: If the number of scores differs from the number of tokens.

        Example:
            >>> lens.embed(lens.project(lens.weights.W_out(0))).shape == lens.weights.W_out(0).shape
            True
        """
        return self.space.embed(scores, side)
