"""Readings: every parameter of a model as a table of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..space.embedding_space import EmbeddingSpace
from ..space.embeddings import full, unembedding_rows
from ..space.vocabulary import Vocabulary
from ..tables.frames import tidy
from ..tables.selection import Select, one_k, select, weight_names
from ..weights.effective import ATTENTION, MLP, Weights, side_of
from .vectors import residual_vectors

BATCH_BYTES = 2**23  # of neurons searched together, so that the embeddings' rows are made once for several layers
CIRCUITS = ("W_OV", "W_QK")
# A singular direction's two sides: where its tokens stand in the circuit.
CIRCUIT_SIDES = {"W_OV": (("read", "read"), ("write", "write")), "W_QK": (("query", "read"), ("key", "read"))}


class Reader:
    """Reads one model's weights in one space; `EmbeddingLens` is its face."""

    def __init__(self, weights: Weights, space: EmbeddingSpace, vocabulary: Vocabulary) -> None:
        self.weights, self.space, self.vocabulary = weights, space, vocabulary
        self.expert_column = ["expert"] if weights.has_experts else []

    # -- helpers

    def layers(self, layer: Select, kind: str) -> list[int]:
        """The selected blocks, each with attention or with an MLP."""
        having = self.weights.layers_with(kind)
        self.weights.require(kind)
        chosen = select("layer", layer, self.weights.n_layers, self.weights.name, "layers")
        if layer is None or isinstance(layer, slice):
            return [number for number in chosen if number in having]
        missing = [number for number in chosen if number not in having]
        if missing:
            raise errors.without(self.weights.name, missing, {"attn": "attention", "mlp": "MLP"}[kind], having)
        return chosen

    def heads(self, head: Select) -> list[int]:
        return select("head", head, self.weights.n_heads, self.weights.name, "heads")

    def mlps(self, layers: Iterable[int], expert: Select = None) -> list[tuple[int, int | None]]:
        """The MLPs of these blocks, expert by expert where they are mixtures; all experts, or the selected ones."""
        units = [(layer, one) for layer in layers for one in self.weights.experts(layer) or [None]]
        if expert is None:
            return units
        if not self.weights.has_experts:
            raise errors.EmbspaceError(
                f"expert={expert!r} selects nothing: {self.weights.name} has no mixture of experts."
            )
        count = 1 + max((one for _, one in units if one is not None), default=-1)
        # −1 stands for what every token passes, and is no number of an expert.
        chosen = (
            [-1]
            if isinstance(expert, int) and expert == -1
            else select("expert", expert, count, self.weights.name, "experts in a block")
        )
        return [(layer, one) for layer, one in units if one in chosen]

    def bar(self, what: str, searches: int) -> tqdm:
        """A progress bar over the tokens that so many searches go through; shown on a terminal, gone when done."""
        total = searches * self.space.n_tokens
        return tqdm(total=total, desc=what, unit="token", unit_scale=True, disable=None, leave=False)

    def token_block(self, x: Tensor, side: str, k: int, largest: bool, bar: tqdm | None = None) -> dict[str, Any]:
        """Best tokens of n vectors as n·k rows, the vectors' number in `row`."""
        seen = 0

        def forward(done: int, _: int) -> None:
            nonlocal seen
            if bar is not None:
                bar.update(done - seen)
            seen = done

        scores, ids = self.space.top(x, side, k, largest=largest, progress=forward)
        return {
            "row": np.repeat(np.arange(len(x)), k),
            "rank": np.tile(np.arange(k), len(x)),
            "token_index": ids.flatten().numpy(),
            "score": scores.flatten(),
        }

    # -- tables

    def neurons(
        self, layer: Select, neuron: Select, expert: Select, weight: Any, k: int, largest: bool
    ) -> pd.DataFrame:
        names = weight_names(weight, MLP)
        k = one_k(k, self.space.n_tokens, "tokens that this lens reads")
        units = self.mlps(self.layers(layer, "mlp"), expert)
        # Experts differ in width: a neuron must be one of the widest MLP, and is read wherever there is such a one.
        widths = [self.weights.d_mlp(number, one) for number, one in units]
        numbers = select("neuron", neuron, max(widths, default=0), self.weights.name, "neurons in its widest MLP")
        grain = ["layer", *self.expert_column, "neuron", "weight", "rank"]

        def queries(batch: list[tuple[int, int | None]], name: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
            """Keys and vectors of one weight's neurons, MLP by MLP."""
            for number, one in batch:
                if name == "W_gate" and names != ["W_gate"] and not self.weights.is_gated(number):
                    continue
                x = self.weights.directions(name, number, one)  # says so if there is no W_gate
                chosen = [n for n in numbers if n < len(x)]
                x = x if neuron is None else x[torch.tensor(chosen, dtype=torch.long, device=x.device)]
                keys = {"layer": number, "expert": -1 if one is None else one}
                yield {key: np.full(len(x), value) for key, value in keys.items()} | {"neuron": np.asarray(chosen)}, x

        def blocks() -> Iterator[dict[str, Any]]:
            batches = self._batches(units, widths if neuron is None else [len(numbers)] * len(units))
            with self.bar("neurons", len(batches) * len(names)) as bar:
                for batch in batches:
                    parts = []
                    for name in names:
                        found = list(queries(batch, name))
                        if not found:
                            continue
                        x = torch.cat([x.to(found[0][1].device) for _, x in found])
                        block = self.token_block(x, side_of(name), k, largest, bar)
                        row = block.pop("row")
                        keys = {key: np.concatenate([keys[key] for keys, _ in found])[row] for key in found[0][0]}
                        parts.append(block | keys | {"weight": [name] * len(row)})
                    yield from _interleaved(parts, {}, "layer", "expert", "neuron")

        return tidy([*grain, "token_index", "token_string", "score"], blocks(), self.vocabulary.array)

    def _batches(self, units: list, widths: list[int]) -> list[list]:
        """Units cut into runs whose vectors fit into `BATCH_BYTES`, one unit at least."""
        batches, room = [], 0
        for unit, width in zip(units, widths):
            size = 4 * width * self.weights.d_model
            if not batches or size > room:
                batches.append([])
                room = BATCH_BYTES
            batches[-1].append(unit)
            room -= size
        return batches

    def subheads(self, layer: Select, head: Select, weight: Any, k: int, largest: bool) -> pd.DataFrame:
        names = weight_names(weight, ATTENTION)
        k = one_k(k, self.space.n_tokens, "tokens that this lens reads")
        heads, layers = self.heads(head), self.layers(layer, "attn")
        grain = ["layer", "head", "subhead", "weight", "rank"]

        def blocks() -> Iterator[dict[str, Any]]:
            with self.bar("subheads", len(layers) * len(names)) as bar:
                for number in layers:
                    parts = []
                    for name in names:
                        x = self.weights.directions(name, number)[heads]
                        block = self.token_block(x.flatten(0, 1), side_of(name), k, largest, bar)
                        row = block.pop("row")
                        keys = {"head": np.asarray(heads)[row // x.shape[1]], "subhead": row % x.shape[1]}
                        parts.append(block | keys | {"weight": [name] * len(row)})
                    yield from _interleaved(parts, {"layer": number}, "head", "subhead")

        return tidy([*grain, "token_index", "token_string", "score"], blocks(), self.vocabulary.array)

    def circuit(
        self, name: str, layer: Select, head: Select, k: int, largest: bool, distance: int | None = None
    ) -> pd.DataFrame:
        """Best pairs of tokens of W_OV (source × promoted) or W_QK (query × key, at a distance of rotary positions)."""
        k = one_k(k, self.space.n_tokens**2, "pairs of tokens that this lens reads")
        heads, layers = self.heads(head), self.layers(layer, "attn")

        def blocks() -> Iterator[dict[str, Any]]:
            with tqdm(total=len(layers) * len(heads), desc=name, unit="head", disable=None, leave=False) as progress:
                for number in layers:
                    form = self.weights.W_OV(number) if name == "W_OV" else self.weights.W_QK(number, distance)
                    for h in heads:
                        sides = ("read", "write" if name == "W_OV" else "read")
                        scores, a, b = self.space.top_pairs(form.A[h], form.B[h].T, sides, k, largest=largest)
                        # W_OV maps a source to what is promoted; W_QK's first token is the query, which attends.
                        src, dest = (a, b) if name == "W_OV" else (b, a)
                        yield {
                            "layer": number,
                            "head": h,
                            "weight": name,
                            "rank": np.arange(k),
                            "dest_token_index": dest,
                            "src_token_index": src,
                            "score": scores,
                        }
                        progress.update()

        pairs = [f"{end}_token_{what}" for end in ("dest", "src") for what in ("index", "string")]
        return tidy(["layer", "head", "weight", "rank", *pairs, "score"], blocks(), self.vocabulary.array)

    def singular(self, layer: Select, head: Select, weight: str, n_directions: int, k: int) -> pd.DataFrame:
        (name,) = weight_names(weight, (*CIRCUITS, *ATTENTION, *MLP), default="W_OV")
        k = one_k(k, self.space.n_tokens, "tokens that this lens reads")
        if isinstance(n_directions, bool) or not isinstance(n_directions, int | np.integer) or n_directions < 1:
            raise errors.EmbspaceError(f"n_directions={n_directions!r} is not a positive number of directions.")
        layers = self.layers(layer, "mlp" if name in MLP else "attn")
        if name in MLP and head is not None:
            raise errors.EmbspaceError(f"head={head!r} selects nothing: {name} has no heads.")
        heads = [-1] if name in MLP else self.heads(head)
        columns = ["layer", *self.expert_column, "head", "weight", "component", "side", "rank"]

        def blocks() -> Iterator[dict[str, Any]]:
            units = self.mlps(layers) if name in MLP else [(number, None) for number in layers]
            for number, expert in tqdm(units, desc=f"singular {name}", unit="layer", disable=None, leave=False):
                for h, sides, values, vectors in self._decompositions(name, number, expert, heads, n_directions):
                    sign = self._sign(vectors[-1], sides[-1][1])
                    parts = []
                    for (side, embedding_side), v in zip(sides, vectors):
                        block = self.token_block(v * sign[:, None], embedding_side, k, largest=True)
                        row = block.pop("row")
                        parts.append(
                            block | {"component": row, "side": [side] * len(row), "singular_value": values[row]}
                        )
                    keys = {"layer": number, "head": h, "weight": name, "expert": -1 if expert is None else expert}
                    yield from _interleaved(parts, keys, "component")

        return tidy(
            [*columns, "token_index", "token_string", "score", "singular_value"], blocks(), self.vocabulary.array
        )

    def _decompositions(
        self, name: str, layer: int, expert: int | None, heads: Sequence[int], n: int
    ) -> Iterator[tuple[int, tuple[tuple[str, str], ...], Tensor, list[Tensor]]]:
        """Head, sides, singular values and the directions `[n, d_model]` of each side."""
        if name in CIRCUITS:
            form = getattr(self.weights, name)(layer)
            for h in heads:
                U, S, V = form[h].svd()
                yield h, CIRCUIT_SIDES[name], S[:n].cpu(), [U[:, :n].T, V[:, :n].T]
            return
        stack = self.weights.directions(name, layer, expert)
        for h in heads:
            U, S, Vh = torch.linalg.svd(stack if h < 0 else stack[h], full_matrices=False)
            yield h, ((side_of(name), side_of(name)),), S[:n].cpu(), [Vh[:n]]

    def _sign(self, x: Tensor, side: str) -> Tensor:
        """±1 for each direction, so that its strongest token scores positive: singular vectors have no sign of their own."""
        top = [self.space.top(x, side, 1, largest=largest)[0][:, 0].abs() for largest in (True, False)]
        return torch.where(top[0] >= top[1], 1.0, -1.0).to(x)

    def directions(self, vectors: Any, names: Sequence[str] | None, side: str, k: int, largest: bool) -> pd.DataFrame:
        x = residual_vectors(vectors, side)
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2:
            raise errors.EmbspaceError(f"vectors have shape {tuple(x.shape)}; give [n, d_model], one direction a row.")
        if names is None:
            names = [str(i).zfill(len(str(max(len(x) - 1, 0)))) for i in range(len(x))]
        if isinstance(names, str):
            names = [names]
        names = [str(n) for n in names]
        if len(names) != len(x):
            raise errors.EmbspaceError(f"names has {len(names)} entries for {len(x)} vectors.")
        if len(set(names)) != len(names):
            raise errors.EmbspaceError("names holds a name twice; a row of the table is known by its direction's name.")
        k = one_k(k, self.space.n_tokens, "tokens that this lens reads")
        order = sorted(range(len(names)), key=names.__getitem__)  # tables are sorted by their grain
        with self.bar("directions", 1) as bar:
            block = self.token_block(x[order], side, k, largest, bar)
        block["direction"] = np.array(names, dtype=object)[order][block.pop("row")]
        return tidy(["direction", "rank", "token_index", "token_string", "score"], [block], self.vocabulary.array)

    def search(self, token: str | int, layer: Select, weight: Any, k: int, largest: bool) -> pd.DataFrame:
        names = weight_names(weight, (*MLP, *ATTENTION))
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise errors.EmbspaceError(f"k={k!r} is not a positive number of rows.")
        index = self.vocabulary.index(token)
        columns = ["layer", *self.expert_column, "head", "neuron", "subhead", "weight", "rank"]
        columns += ["token_index", "token_string", "score"]
        blocks = []
        for name in tqdm(names, desc="search", unit="weight", disable=None, leave=False):
            kind = "mlp" if name in MLP else "attn"
            if weight is None and not self.weights.layers_with(kind):
                continue
            found = self._best_units(name, self.layers(layer, kind), index, int(k), largest)
            if found is None and weight is not None:
                self.weights.W_gate(self.layers(layer, kind)[0])  # says that there is none
            if found is not None:
                blocks.append(found | {"weight": name, "token_index": index})
        return tidy(columns, blocks, self.vocabulary.array)

    def _best_units(self, name: str, layers: list[int], token: int, k: int, largest: bool) -> dict[str, Any] | None:
        """The k directions of one weight, over the layers, that score the token highest (or lowest)."""
        side = side_of(name)
        target = self.space.of_token(token, side)
        scores, keys = [], []
        for layer, expert in self.mlps(layers) if name in MLP else ((number, None) for number in layers):
            if name == "W_gate" and not self.weights.is_gated(layer):
                continue
            x = self.weights.directions(name, layer, expert)
            flat = (self.space.vectors(x.reshape(-1, x.shape[-1]), side) @ target).cpu()
            place = np.arange(len(flat))
            in_head = name in ATTENTION
            d_head = x.shape[-2] if in_head else 1
            minus = np.full(len(flat), -1)
            keys.append(
                np.stack(
                    [
                        np.full(len(flat), layer),
                        np.full(len(flat), -1 if expert is None else expert),
                        place // d_head if in_head else minus,
                        minus if in_head else place,
                        place % d_head if in_head else minus,
                    ]
                )
            )
            scores.append(flat)
        if not scores:
            return None
        score, key = torch.cat(scores), np.concatenate(keys, axis=1)
        order = torch.argsort(score, descending=largest, stable=True)[:k]
        layer, expert, head, neuron, subhead = key[:, order.numpy()]
        return {
            "layer": layer,
            "expert": expert,
            "head": head,
            "neuron": neuron,
            "subhead": subhead,
            "rank": np.arange(len(order)),
            "score": score[order],
        }


def _interleaved(parts: list[dict[str, Any]], keys: dict[str, Any], *units: str) -> Iterator[dict[str, Any]]:
    """The parts (one a weight or side, equally keyed) as one block in the order of `units`, then part, then rank."""
    if not parts or not len(parts[0]["rank"]):
        return
    joined = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    place = np.concatenate([np.full(len(part["rank"]), i) for i, part in enumerate(parts)])
    order = np.lexsort((joined["rank"], place, *(joined[unit] for unit in reversed(units))))
    yield {name: values[order] for name, values in joined.items()} | keys


def _norm_of(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight, dtype=full(weight.dtype)))


def _norm_of_W_U(weights: Weights) -> float:
    """By the tile: behind its norm, W_U is as large a matrix again."""
    return float(torch.stack([rows.square().sum() for rows in unembedding_rows(weights).tiles()]).sum().sqrt())


def components(weights: Weights) -> pd.DataFrame:
    """One row for each weight of each layer (and expert): shape, norm, what was folded, and what to mind."""
    host = weights.host
    notes = host.notes()
    notes["W_Q"] = notes["W_K"] = notes.pop("W_QK")
    expert_column = ["expert"] if weights.has_experts else []
    columns = ["layer", *expert_column, "weight", "rows", "columns", "n_heads", "norm", "dtype", "folded", "note"]

    def parts(weight: str, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        """The weight as stored, and as it takes effect."""
        if layer < 0:
            stored = host.outer(weight)
            return stored, stored if weight == "W_U" else getattr(weights, weight)  # W_U folded is a copy; see its norm
        block = host.blocks[layer]
        if weight in ATTENTION:
            return host.attention(block, weight), getattr(weights, weight)(layer)
        stored = host.mlp(block, weight, expert)
        assert stored is not None, "only gated blocks are asked for W_gate"
        return stored, getattr(weights, weight)(layer, expert if weights.experts(layer) else None)

    def row(weight: str, layer: int, expert: int = -1) -> dict[str, Any]:
        keys = {"layer": layer, "expert": expert, "weight": weight}
        try:
            stored, effective = parts(weight, layer, expert)
        except errors.EmbspaceError as reason:
            empty = {"rows": 0, "columns": 0, "n_heads": 0, "norm": np.nan, "dtype": "", "folded": ""}
            return keys | empty | {"note": str(reason)}
        return keys | {
            "rows": stored.shape[-2],
            "columns": stored.shape[-1],
            "n_heads": len(stored) if stored.ndim == 3 else 0,
            "norm": _norm_of_W_U(weights) if weight == "W_U" else _norm_of(effective),
            "dtype": str(stored.dtype).removeprefix("torch."),
            "folded": weights.folded_into(weight, layer),
            "note": notes.get(weight, ""),
        }

    def rows() -> Iterator[dict[str, Any]]:
        yield from (row(name, -1) for name in ("W_E", "W_U"))
        if host.has_positions:
            yield row("W_pos", -1)
        for block in tqdm(host.blocks, desc="components", unit="layer", disable=None, leave=False):
            try:
                experts = weights.experts(block.layer) if block.mlp is not None else []
                gated = block.mlp is not None and weights.is_gated(block.layer)
            except errors.EmbspaceError:  # told again, row by row
                experts, gated = [], True
            for expert in experts or [-1]:
                yield from (row(name, block.layer, expert) for name in MLP if name != "W_gate" or gated)
            yield from (row(name, block.layer) for name in ATTENTION)

    frame = tidy(columns, rows())
    return frame.sort_values(["layer", *expert_column, "weight"], kind="stable", ignore_index=True)
