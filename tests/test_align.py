"""Two models in one space: slow twins, planted answers, controls, shared tokens, and what is refused."""

import doctest
import re
import sys
from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from laws import permute_neurons, random_rotation, rotate_residual_stream
from reference import brute_alignment, brute_correlation
from tables import check_tidy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from embspace_lens import Alignment, EmbeddingLens, EmbspaceError, align, compare, demo, match_neurons
from embspace_lens.compare import common_tokens as shared
from embspace_lens.compare.common_tokens import shared_rows, shared_tokens
from embspace_lens.space.vocabulary import Vocabulary
from embspace_lens.weights.effective import side_of

pytestmark = pytest.mark.filterwarnings("ignore:.*a comparison through so few is weak")

D_VOCAB = 130  # the zoo's 97 are too few to compare models by
WEIGHTS = ["W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O"]
GRAIN = ["weight", "layer_a", "layer_b", "neuron_a", "match"]


def words(pieces):
    """A tokenizer of whole words, by id."""
    vocabulary = {"<unk>": 0, "<|endoftext|>": 1} | {piece: i for i, piece in enumerate(pieces, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<|endoftext|>"
    )


def build(family, seed=0, edit=None, d_vocab=D_VOCAB, **config):
    """A random Hugging Face model; the same for the same family, seed and configuration."""
    settings_, model, kwargs = zoo._TABLE[family]
    return zoo._build(f"{family}{seed or ''}", settings_, model, kwargs | {"vocab_size": d_vocab} | config, edit)


def boot(hf_model, pieces=None, name="zoo"):
    tokenizer = words(pieces or [f"w{i}" for i in range(2, hf_model.config.vocab_size)])
    return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu").eval()


@cache
def booted(family, seed, config):
    return boot(build(family, seed, **dict(config)))


def lens_of(family, seed=0, options=None, **config):
    """A lens on a model that is built once; tests must not change it."""
    return EmbeddingLens(booted(family, seed, tuple(config.items())), **(options or {}))


def plain_norms(model):
    """Gains of 1: only then may the residual stream be turned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)


@pytest.fixture(scope="module")
def two():
    """Two unrelated gated models with grouped heads."""
    return lens_of("llama"), lens_of("llama", 1)


def scores(lens, weight, layer, ids):
    """All vectors of a layer, every expert's, over the shared tokens: what align() never builds."""
    experts = lens.weights.experts(layer) if weight in ("W_in", "W_gate", "W_out") else []
    parts = [lens.weights.directions(weight, layer, expert).flatten(0, -2) for expert in experts or [None]]
    return lens.project(torch.cat(parts), side_of(weight))[:, ids]


PAIRS = {
    "gpt2, tied": (("gpt2",), ("gpt2", 1)),
    "gated, grouped heads, untied": (("llama",), ("llama", 1)),
    "mixture of experts": (("qwen2_moe",), ("mixtral",)),
    "wider and deeper": (("gpt2",), ("llama", 0, None, dict(hidden_size=40, num_hidden_layers=3, head_dim=8))),
    "wider first": (("llama", 0, None, dict(hidden_size=40, head_dim=8)), ("gemma",)),
    "pinv of some tokens": (
        ("llama", 0, dict(inverse="pinv", vocabulary=range(5, 125))),
        ("llama", 1, dict(vocabulary=range(3, 120))),
    ),
    "cosine, one E": (("gpt2", 0, dict(score="cosine", space="unembed")), ("gpt2", 1, dict(space="embed"))),
    "as stored": (("gpt2", 0, dict(fold_ln=False, score="centered")), ("olmo2", 0, dict(fold_ln=False))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_alignment_is_the_papers_formula(pair):
    a, b = (lens_of(*spec[:3], **(spec[3] if len(spec) > 3 else {})) for spec in PAIRS[pair])
    found = align(a, b)
    ids_a, ids_b = shared_tokens(a, b)
    assert found.n_tokens == len(ids_a) == (115 if pair.startswith("pinv") else D_VOCAB)
    gated = a.weights.is_gated(0) and b.weights.is_gated(0)
    assert found.correlation["weight"].unique().tolist() == [w for w in WEIGHTS if gated or w != "W_gate"]
    for row in found.correlation.itertuples():
        twin = brute_alignment(scores(a, row.weight, row.layer_a, ids_a), scores(b, row.weight, row.layer_b, ids_b))
        assert row.correlation == pytest.approx(twin, abs=2e-6), row


def test_alignment_in_residual_space_is_the_papers_baseline(two):
    found = align(*two, space="residual")
    assert found.n_tokens is None
    for row in found.correlation.itertuples():
        x, y = (
            lens.weights.directions(row.weight, layer).flatten(0, -2)
            for lens, layer in zip(two, (row.layer_a, row.layer_b))
        )
        assert row.correlation == pytest.approx(brute_alignment(x, y), abs=2e-6), row


def test_neurons_correlate_as_by_hand(two):
    a, b = two
    ids_a, ids_b = shared_tokens(a, b)
    for weight in ("W_in", "W_out"):
        x, y = scores(a, weight, 0, ids_a).double().numpy(), scores(b, weight, 1, ids_b).double().numpy()
        table = np.array([[brute_correlation(one, other) for other in y] for one in x])
        found = match_neurons(a, b, 0, 1, weight=weight)
        nearest, one_to_one = (found[found["match"] == kind] for kind in ("nearest", "one_to_one"))
        assert nearest["neuron_b"].tolist() == table.argmax(axis=1).tolist()
        assert sorted(one_to_one["neuron_b"]) == list(range(48))
        np.testing.assert_allclose(found["correlation"], table[found["neuron_a"], found["neuron_b"]], atol=2e-6)
        taken = one_to_one["neuron_b"].tolist()
        for i in range(48):
            for j in range(i):
                kept, swapped = (table[i, taken[m]] + table[j, taken[n]] for m, n in ((i, j), (j, i)))
                assert kept > swapped - 1e-5, "no two would both rather swap"


def test_how_much_is_held_or_multiplied_at_a_time_is_invisible(two, monkeypatch):
    a, b = two
    whole, partners = align(a, b), match_neurons(a, b, 0, 1)
    monkeypatch.setattr(compare.neurons, "TILE_PAIRS", 500)
    monkeypatch.setattr(sys.modules["embspace_lens.compare.alignment"], "TILE", 20)
    monkeypatch.setattr(sys.modules["embspace_lens.compare.alignment"], "HELD_BYTES", 1)
    monkeypatch.setattr(compare.meeting, "TILE", 50)
    tiled = align(a, b)
    np.testing.assert_allclose(whole.correlation["correlation"], tiled.correlation["correlation"], atol=1e-6)
    assert whole.matches.drop(columns="correlation").equals(tiled.matches.drop(columns="correlation"))
    assert partners["neuron_b"].equals(match_neurons(a, b, 0, 1)["neuron_b"])


# -- planted


def disguised(order, **config):
    """A llama, and the same with its neurons in another order and its residual stream turned."""
    turned = build("llama", edit=plain_norms, **config)
    permute_neurons(turned, order)
    rotate_residual_stream(turned, random_rotation(turned.config.hidden_size))
    return EmbeddingLens(boot(build("llama", edit=plain_norms, **config))), EmbeddingLens(boot(turned))


def test_a_disguised_copy_is_recognised_in_embedding_space_alone():
    order = torch.randperm(48).numpy()
    a, b = disguised(torch.from_numpy(order), num_hidden_layers=6)
    found = align(a, b)
    assert (found.matches["layer_a"] == found.matches["layer_b"]).all() and len(found.matches) == 7 * 6
    assert (found.on_diagonal()["n_matched"] == 6).all()
    residual = align(a, b, space="residual").on_diagonal()
    assert residual["n_matched"].sum() <= 7 + 4 * 7**0.5, "fixed points of 7 random permutations, and 4 deviations"
    for weight in ("W_in", "W_gate", "W_out"):
        for match, rows in match_neurons(a, b, 2, 2, weight=weight).groupby("match", observed=True):
            assert order[rows["neuron_b"]].tolist() == rows["neuron_a"].tolist(), match
            assert rows["correlation"].min() > 0.999
        lost = match_neurons(a, b, 2, 2, weight=weight, space="residual")
        assert lost["correlation"].max() < 0.95
        assert (order[lost["neuron_b"]] == lost["neuron_a"]).mean() < 0.2


def test_shuffled_layers_are_found():
    order = [3, 0, 4, 1, 2]
    shuffled = build("gpt2", n_layer=5)
    shuffled.transformer.h = torch.nn.ModuleList([shuffled.transformer.h[i] for i in order])
    found = align(lens_of("gpt2", n_layer=5), EmbeddingLens(boot(shuffled)))
    for weight, rows in found.matches.groupby("weight", observed=True):
        assert [order[layer] for layer in rows["layer_b"]] == rows["layer_a"].tolist() == list(range(5)), weight
    assert found.on_diagonal()["n_matched"].tolist() == [0] * 6


def test_some_layers_of_a_deeper_model_are_found():
    fewer = build("gpt2", n_layer=6)
    fewer.transformer.h = torch.nn.ModuleList([fewer.transformer.h[i] for i in (1, 2, 5)])
    fewer.config.n_layer = 3
    found = align(EmbeddingLens(boot(fewer)), lens_of("gpt2", n_layer=6))
    assert found.matches.groupby("weight", observed=True)["layer_b"].agg(list).tolist() == [[1, 2, 5]] * 6
    assert found.on_diagonal()[["n_layers", "chance"]].drop_duplicates().values.tolist() == [[3, 0.5]]
    back = align(lens_of("gpt2", n_layer=6), EmbeddingLens(boot(fewer)))
    assert back.matches.groupby("weight", observed=True)["layer_a"].agg(list).tolist() == [[1, 2, 5]] * 6


def test_a_model_is_itself_and_comparing_is_symmetric(two):
    a, b = two
    assert (align(a, a).on_diagonal()["n_matched"] == 2).all()
    own = match_neurons(a, a, 1, 1)
    assert (own["neuron_a"] == own["neuron_b"]).all() and own["correlation"].min() > 0.99999
    there, back = align(a, b).correlation, align(b, a).correlation
    back = back.rename(columns={"layer_a": "layer_b", "layer_b": "layer_a"}).sort_values(
        ["weight", "layer_a", "layer_b"], ignore_index=True
    )
    np.testing.assert_allclose(there["correlation"], back["correlation"], atol=1e-6)


def test_unrelated_models_are_matched_by_chance():
    """The control: what is found above is not found where there is nothing."""
    a, b = (lens_of("llama", seed, num_hidden_layers=6) for seed in (0, 1))
    diagonal = align(a, b).on_diagonal()
    assert diagonal["chance"].tolist() == [1.0] * 7
    assert diagonal["n_matched"].sum() <= 7 + 4 * 7**0.5
    assert match_neurons(a, b, 0, 0)["correlation"].max() < 0.8


def test_demo_models_meet_in_embedding_space(demo_lens):
    other = EmbeddingLens.from_pretrained("reviews-small-1")
    found = align(demo_lens, other, weights=["W_V", "W_O"])
    assert found.n_tokens == demo_lens.space.n_tokens
    assert found.on_diagonal()["n_matched"].tolist() == [4, 4]


# -- what is left out


def test_vectors_of_zeros_are_left_out_and_layers_of_zeros_unmatched():
    def silence(model):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.model.layers[1].mlp.down_proj.weight[:, 5] = 0

    a, b = EmbeddingLens(boot(build("llama", edit=silence))), lens_of("llama", 1)
    found = align(a, b, weights="W_out")
    ids_a, ids_b = shared_tokens(a, b)
    kept = [i for i in range(48) if i != 5]
    twin = brute_alignment(scores(a, "W_out", 1, ids_a)[kept], scores(b, "W_out", 1, ids_b))
    assert found.correlation["correlation"].tolist()[3] == pytest.approx(twin, abs=2e-6)
    assert found.correlation["correlation"].isna().tolist() == [True, True, False, False]
    assert found.matches["layer_a"].tolist() == [1]
    assert found.on_diagonal()[["n_layers", "chance"]].values.tolist() == [[1, 0.5]]
    assert "W_out" in repr(found) and found.plot() is not None
    assert 5 not in match_neurons(a, b, 1, 0)["neuron_a"].tolist()
    assert 5 not in match_neurons(b, a, 0, 1)["neuron_b"].tolist()
    check_tidy(match_neurons(a, b, 0, 0), GRAIN, [*GRAIN, "neuron_b", "correlation"])
    assert len(match_neurons(a, b, 0, 0)) == len(match_neurons(b, a, 0, 0)) == 0
    for space in ("embedding", "residual"):
        nothing = align(a, a, weights="W_out", space=space)
        assert nothing.matches[["layer_a", "layer_b"]].values.tolist() == [[1, 1]]


def test_what_no_token_tells_apart_is_left_out():
    """Behind a LayerNorm, the direction of all ones scores every token alike, but for rounding."""

    def constant(model):
        with torch.no_grad():
            model.transformer.h[0].mlp.c_proj.weight[3] = 2.0

    a = EmbeddingLens(boot(build("gpt2", edit=constant)))
    found = match_neurons(a, a, 0, 0)
    assert sorted(set(range(48)) - set(found["neuron_a"])) == [3]


# -- tables


@pytest.mark.parametrize("pair", [("llama", "gpt2"), ("mixtral", "qwen2_moe"), ("llama", "mixtral"), ("jamba", "gpt2")])
def test_tables_are_tidy(pair):
    a, b = map(lens_of, pair)
    for options in (dict(), dict(weights=["W_out", "W_V"], space="residual")):
        found = align(a, b, **options)
        columns = ["weight", "layer_a", "layer_b", "correlation"]
        check_tidy(found.correlation, columns[:3], columns)
        check_tidy(found.matches, columns[:2], columns)
        check_tidy(found.on_diagonal(), columns[:1], ["weight", "n_matched", "n_layers", "chance", "correlation"])
        ends = [f"expert_{end}" for end, lens in zip("ab", (a, b)) if lens.weights.has_experts]
        columns = ["weight", "layer_a", "layer_b", *(e for e in ends if e == "expert_a"), "neuron_a", "match"]
        grain = [column for column in columns]
        columns += [*(e for e in ends if e == "expert_b"), "neuron_b", "correlation"]
        check_tidy(match_neurons(a, b, 1, 0), grain, columns)
    check_tidy(match_neurons(a, b, 0, 1, space="residual", one_to_one=False), grain, columns)


def test_hybrids_are_compared_where_they_have_the_weight():
    found = align(lens_of("jamba"), lens_of("gpt2")).correlation
    attention = found[found["weight"] == "W_V"]
    assert attention["layer_a"].unique().tolist() == [1, 3] and attention["layer_b"].unique().tolist() == [0, 1]


def test_repr_is_a_sentence(two):
    assert re.fullmatch(
        r"Alignment\(zoo × zoo: 2 × 2 layers, 130 shared tokens; W_V \d of 2, W_O \d of 2 layers with their own number\)",
        repr(align(*two, weights=["W_V", "W_O"])),
    )
    assert "residual space" in repr(align(*two, weights="W_V", space="residual"))


# -- shared tokens


class Pieces:
    """As much of a tokenizer as a vocabulary asks for; texts of tokens are given with them."""

    def __init__(self, pieces, texts=None):
        self.pieces, self.texts = list(pieces), list(texts or pieces)

    def __len__(self):
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]

    def batch_decode(self, ids, **_):
        return [self.texts[i] for (i,) in ids]


def vocabulary(pieces, texts=None, d_vocab=None):
    return Vocabulary(Pieces(pieces, texts), d_vocab or len(pieces))


def same(a, b):
    return [ids.tolist() for ids in shared._same(a, b)]


def test_tokens_are_the_same_by_piece():
    assert same(vocabulary("abc"), vocabulary("abc")) == [[0, 1, 2], [0, 1, 2]]
    assert same(vocabulary(["Ġa", "b", "c"]), vocabulary(["c", "x", "Ġa", "a"])) == [[0, 2], [2, 0]]
    # Bytes that do not decode by themselves share a text, and are told apart by their pieces.
    bytes_a, bytes_b = (vocabulary(p, ["\ufffd"] * 2 + [" z"]) for p in (["Ã", "Ð", "Ġz"], ["Ð", "Ñ", "Ġz"]))
    assert same(bytes_a, bytes_b) == [[1, 2], [0, 2]]


def test_tokens_of_other_families_are_the_same_by_text():
    gpt = vocabulary(["Ġfilm", "film", "Ã", "A"], [" film", "film", "\ufffd", "A"])
    llama = vocabulary(["▁film", "<0x41>", "A", "film", "<0xC3>"], ["film", "A", "A", "film", "\ufffd"])
    assert same(gpt, llama) == [[0, 1, 3], [0, 3, 2]]
    doubled = vocabulary(["▁film", "A", "a"], ["film", "A", "A"])  # two tokens of one text: neither is meant
    assert same(gpt, doubled) == [[0], [0]]


def test_ids_past_the_tokenizers_end_are_nobodys():
    assert same(vocabulary("abc", d_vocab=5), vocabulary("abc", d_vocab=6)) == [[0, 1, 2], [0, 1, 2]]
    assert same(vocabulary("abc", d_vocab=2), vocabulary("cab")) == [[0, 1], [1, 2]], (
        "and so are pieces past the model's"
    )
    assert same(vocabulary(["a", "3"], d_vocab=5), vocabulary(["3", "a"], d_vocab=4)) == [[0, 1], [1, 0]]


@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.sampled_from([f"Ġ{c}" for c in "abcdefghijk"]), unique=True, min_size=1)] * 2)
def test_shared_pieces_in_loops(a, b):
    expected = [(i, j) for i in range(len(a)) for j in range(len(b)) if a[i] == b[j]]
    assert list(zip(*same(vocabulary(a), vocabulary(b)))) == expected


def test_other_ids_for_the_same_words_change_nothing():
    a, b = lens_of("llama"), lens_of("llama", 1)
    order = torch.cat([torch.arange(2), torch.randperm(D_VOCAB - 2) + 2])
    model = build("llama", 1)
    with torch.no_grad():
        for rows in (model.model.embed_tokens.weight, model.lm_head.weight):
            rows.copy_(rows[order])
    renumbered = EmbeddingLens(boot(model, [f"w{i}" for i in order[2:].tolist()]))
    ids_a, ids_b = shared_tokens(a, renumbered)
    assert (order[ids_b] == ids_a).all()
    np.testing.assert_allclose(
        align(a, b).correlation["correlation"], align(a, renumbered).correlation["correlation"], atol=1e-6
    )


def test_only_what_both_lenses_read_is_shared(two):
    a = lens_of("llama", options=dict(vocabulary=range(10, 125), score="centered"))
    ids_a, ids_b = shared_tokens(a, two[1])
    assert ids_a.tolist() == ids_b.tolist() == list(range(10, 125))
    ids_b, ids_a = shared_tokens(two[1], a)
    assert torch.equal(shared_rows(a, "write", ids_a)[:], a.space.rows("write")[:])
    some = shared_rows(a, "read", torch.tensor([12, 40]))
    assert some.shape == (2, 32) and torch.equal(some[:], a.space.rows("read")[torch.tensor([2, 30])])


def test_without_tokenizers_ids_are_the_same_where_there_are_equally_many():
    def bare(d_vocab):
        lens = lens_of("llama", d_vocab=d_vocab)
        lens.vocabulary.tokenizer = None
        return lens

    assert shared_tokens(bare(130), bare(130))[1].tolist() == list(range(130))
    with pytest.raises(
        EmbspaceError, match="zoo has 130 tokens and no tokenizer, and zoo has 140 tokens and no tokenizer"
    ):
        shared_tokens(bare(130), bare(140))
    with pytest.raises(
        EmbspaceError, match=r"no tokenizer, and zoo has one: .* Give EmbeddingLens\(model, tokenizer=…\)"
    ):
        shared_tokens(lens_of("llama"), bare(130))


@pytest.mark.filterwarnings("error")
def test_few_shared_tokens_are_refused_or_warned_of(two):
    few = lens_of("llama", options=dict(vocabulary=range(99)))
    with pytest.raises(EmbspaceError, match="share 99 of the 99 and 130 tokens .* fewer than 100: too few"):
        align(few, two[0])
    with pytest.warns(UserWarning, match="zoo and zoo share 130 of the 130 and 130 tokens .* is weak"):
        align(*two, weights="W_V")
    small, large = (lens_of("llama", d_vocab=size) for size in (1050, 10600))
    align(small, small, weights="W_V")
    with pytest.warns(UserWarning, match="share 1,050 of the 1,050 and 10,600 tokens"):
        match_neurons(small, large, 0, 0, one_to_one=False)


# -- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(space="vocabulary"), "space='vocabulary' is not one of 'embedding', 'residual'"),
        (dict(weights="Wout"), "weight='Wout' is not one of .* Did you mean 'W_out'"),
        (dict(weights="W_gate"), "zoo's MLP in block 0 is not gated: it has no W_gate"),
        (dict(space="residual", d_model=40), "d_model=32 and zoo d_model=40.*space='embedding'"),
        (dict(b=3), "int is not an EmbeddingLens. Wrap the model: EmbeddingLens"),
        (dict(weights=[]), "no weight to compare that can be read in both"),
    ],
)
def test_alignments_that_cannot_be(two, options, sentence):
    width = options.pop("d_model", None)
    b = options.pop("b", None) or lens_of("gpt2", **({"n_embd": width} if width else {}))
    with pytest.raises(EmbspaceError, match=sentence):
        align(two[0], b, **options)


@pytest.mark.parametrize(
    ("layers", "options", "sentence"),
    [
        ((0, 2), {}, r"layer_b=2 is out of range: zoo has 2 layers \(0 to 1\)"),
        ((None, 0), {}, "layer_a=None does not name a layer; match_neurons.. takes exactly one"),
        ((0, [0, 1]), {}, r"layer_b=\[0, 1\] does not name a layer"),
        ((0, 0), dict(weight="W_V"), "weight='W_V' is not one of 'W_in', 'W_gate', 'W_out'"),
        ((0, 0), dict(weight=["W_in", "W_out"]), "does not name one of the MLP's weights"),
        ((0, 0), dict(weight=None), "weight=None does not name one of the MLP's weights"),
        ((0, 0), dict(space="raw"), "space='raw' is not one of"),
    ],
)
def test_matches_that_cannot_be(two, layers, options, sentence):
    with pytest.raises(EmbspaceError, match=sentence):
        match_neurons(*two, *layers, **options)


def test_a_layer_without_neurons_and_neurons_without_end(two, monkeypatch):
    with pytest.raises(EmbspaceError, match="zoo's MLP in block 0 is not gated"):
        match_neurons(two[0], lens_of("gpt2"), 0, 1, weight="W_gate")
    monkeypatch.setattr(compare.neurons, "MOST_PAIRS", 100)
    with pytest.raises(EmbspaceError, match=r"48 × 48 neurons are too many .* Give one_to_one=False"):
        match_neurons(*two, 0, 1)
    assert len(match_neurons(*two, 0, 1, one_to_one=False)) == 48


def test_models_that_have_no_weight_in_common():
    mamba = lens_of("mamba")
    with pytest.raises(
        EmbspaceError, match="no weight to compare that can be read in both. zoo's blocks 0, 1 have no attention"
    ):
        align(mamba, mamba)
    with pytest.raises(EmbspaceError, match="have no attention"):
        align(lens_of("gpt2"), mamba, weights="W_Q")


def test_weights_that_are_not_finite_are_refused(two):
    def spoil(model):
        model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan

    spoilt = EmbeddingLens(boot(build("llama", edit=spoil)))
    for space in ("embedding", "residual"):
        with pytest.raises(EmbspaceError, match="NaN or infinite values in W_in of block 1"):
            align(spoilt, two[1], space=space)


def test_the_examples_in_docstrings_run():
    if not {"reviews-small-0", "reviews-small-1"} <= set(demo.names()):
        pytest.skip("the demo models are not in this checkout")
    lens, other = (EmbeddingLens.from_pretrained(f"reviews-small-{seed}") for seed in (0, 1))
    ran = 0
    for module in ("align", "neurons", "shared", "meeting"):
        module = sys.modules[f"embspace_lens.compare.{module}"]
        for test in doctest.DocTestFinder().find(module, globs=vars(module) | {"lens": lens, "other": other}):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, test.name
            ran += result.attempted
    assert ran == 6


# -- pictures


def test_plot_draws_every_weight_and_rings_the_assignment():
    pytest.importorskip("plotly")
    a = EmbeddingLens(boot(build("llama"), name="<b>a</b>"))
    found = align(a, a, weights=["W_in", "W_V"])
    assert isinstance(found, Alignment)
    figure = found.plot()
    assert [np.asarray(trace.z).shape for trace in figure.data] == [(2, 2)] * 2
    assert len(figure.layout.shapes) == 4
    assert figure.layout.title.text == "4 of 4 layers are matched with their own number (by chance 2)"
    assert "<b>a</b>" not in figure.to_json() and "&lt;b&gt;a" in figure.to_json()
    assert len(found.plot(weights="W_V").data) == 1
    with pytest.raises(EmbspaceError, match="weight='W_K' was not compared; this alignment has W_in, W_V"):
        found.plot(weights=["W_K"])
    with pytest.raises(EmbspaceError, match="leaves nothing to draw"):
        found.plot(weights=[])


def test_functions_are_not_hidden_by_their_modules():
    assert compare.align is align is sys.modules["embspace_lens.compare.alignment"].align
