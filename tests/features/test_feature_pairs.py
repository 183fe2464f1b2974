"""virtual_weights: the pairs of brute force in float64, tidy tables, and the order of layers."""

from dataclasses import replace

import pytest
import torch
import zoo
from laws import check_ranking
from reference import brute_top_pairs
from tables import check_tidy
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.features import Features, virtual_weights
from embspace_lens.features.stream_order import place_of

GRAIN = ["circuit", "layer", "head", "rank"]
COLUMNS = [
    *GRAIN,
    "dest_feature_index",
    "dest_feature_label",
    "src_feature_index",
    "src_feature_label",
    "score",
]


def dictionary(n, d=zoo.D_MODEL, dtype=torch.float32, **options):
    options = {"name": f"dictionary of {n}"} | options
    return Features(torch.randn(n, d).to(dtype), torch.randn(d, n).to(dtype), **options)


def pairs_of(table):
    """Scores, source features and target features as tensors."""
    return tuple(torch.tensor(table[name].tolist()) for name in ("score", "src_feature_index", "dest_feature_index"))


def expected_direct(source, target, k, largest=True):
    eye = torch.eye(source.d_model)
    return brute_top_pairs(source.decoder, eye, eye, target.encoder.T, k, largest)


# -- directly through the stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [True, False])
def test_direct_weights_equal_brute_force(dtype, largest):
    source, target = dictionary(19, 7, dtype), dictionary(30, 7, dtype)
    for k in (1, 10, 19 * 30):
        table = virtual_weights(source, target, k=k, largest=largest)
        check_tidy(table, GRAIN, COLUMNS)
        check_ranking(pairs_of(table), expected_direct(source, target, k, largest))
    assert set(table["layer"]) == set(table["head"]) == {-1}


@pytest.mark.parametrize("largest", [True, False])
def test_equal_weights_are_in_the_order_of_their_features(largest):
    rows = torch.randint(-1, 2, (40, 4)).float()
    source, target = Features(rows, rows.T), Features(rows.flip(0), rows.flip(0).T)
    for k in (1, 25, 600):
        table = virtual_weights(source, target, k=k, largest=largest)
        check_ranking(pairs_of(table), expected_direct(source, target, k, largest))


def test_dictionary_with_one_feature_has_one_pair():
    one = Features(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0], [5.0]]), labels=["only"])
    table = virtual_weights(one, one, k=1)
    assert table[["src_feature_label", "dest_feature_label", "score"]].values.tolist() == [["only", "only", 6.0]]


def test_planted_pairs_are_the_strongest():
    source, target = dictionary(300, 64), dictionary(200, 64)
    encoder = 0.01 * target.encoder
    planted = [(7, 150), (250, 3), (0, 199)]
    for rank, (s, t) in enumerate(planted):
        encoder[:, t] = (3 - rank) * source.decoder[s] / source.decoder[s].norm()
    source = replace(source, decoder=torch.nn.functional.normalize(source.decoder, dim=1))
    table = virtual_weights(source, replace(target, encoder=encoder), k=3)
    assert table[["src_feature_index", "dest_feature_index"]].values.tolist() == [list(pair) for pair in planted]
    assert table["score"].round(4).tolist() == [3, 2, 1]


def test_zero_decoder_gives_zero_weights():
    source = Features(torch.zeros(3, 4), torch.zeros(4, 3))
    table = virtual_weights(source, source, k=9)
    assert (table["score"] == 0).all() and table["src_feature_index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_rotation_of_the_stream_leaves_direct_weights_unchanged():
    source, target = dictionary(50), dictionary(60)
    Q = torch.linalg.qr(torch.randn(zoo.D_MODEL, zoo.D_MODEL, dtype=torch.float64))[0].float()
    rotated = (replace(each, decoder=each.decoder @ Q, encoder=Q.T @ each.encoder) for each in (source, target))
    table, expected = virtual_weights(*rotated, k=20), virtual_weights(source, target, k=20)
    assert table.drop(columns="score").equals(expected.drop(columns="score"))
    torch.testing.assert_close(pairs_of(table)[0], pairs_of(expected)[0], rtol=1e-5, atol=1e-5)


def test_permuted_features_give_permuted_pairs():
    source, target, order = dictionary(50), dictionary(60), torch.randperm(50)
    permuted = replace(source, decoder=source.decoder[order])
    table, expected = virtual_weights(permuted, target, k=20), virtual_weights(source, target, k=20)
    assert order[pairs_of(table)[1]].tolist() == expected["src_feature_index"].tolist()


# -- through heads


def bilinear(lens, circuit, layer, head):
    matrix = lens.weights.W_OV(layer) if circuit == "ov" else lens.weights.W_QK(layer)
    return matrix.AB[head].double()


@pytest.mark.parametrize("circuit", ["ov", "qk"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])  # LayerNorm; grouped heads; gains of 1 + weight
def test_weights_through_heads_equal_brute_force(tiny, architecture, circuit):
    lens = EmbeddingLens(tiny(architecture))
    source, target = dictionary(20), dictionary(15)
    table = virtual_weights(source, target, lens=lens, layer=[0, 1], circuit=circuit, k=12)
    check_tidy(table, GRAIN, COLUMNS)
    assert len(table) == 2 * zoo.N_HEADS * 12 and set(table["circuit"]) == {circuit}
    for (layer, head), rows in table.groupby(["layer", "head"]):
        form = bilinear(lens, circuit, layer, head)
        if circuit == "ov":
            weights = source.decoder.double() @ form @ target.encoder.double()
        else:  # the query is on the left
            weights = (target.decoder.double() @ form @ source.decoder.double().T).T
        score, s, t = pairs_of(rows)
        torch.testing.assert_close(score.double(), weights.flatten().topk(12).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(score.double(), weights[s, t], rtol=1e-4, atol=1e-5)


def test_selected_heads_are_those_of_all_heads(lens):
    source, target = dictionary(20), dictionary(15)
    every = virtual_weights(source, target, lens=lens, layer=1, circuit="ov", k=4)
    some = virtual_weights(source, target, lens=lens, layer=1, head=[1, 3], circuit="ov", k=4)
    assert some.equals(every[every["head"].isin([1, 3])].reset_index(drop=True))


def test_attention_needs_no_encoder(lens):
    source = replace(dictionary(9), encoder=None)
    assert len(virtual_weights(source, source, lens=lens, layer=0, circuit="qk", k=2)) == 2 * zoo.N_HEADS
    with pytest.raises(EmbspaceError) as caught:
        virtual_weights(source, source, lens=lens, layer=0, circuit="ov")
    assert str(caught.value) == (
        "dictionary of 9 has no encoder, so what its features read is unknown. Load the whole dictionary, or pass "
        "encoder= to Features."
    )


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])  # LayerNorm; gains of 1 + weight
def test_lens_folds_the_norm_before_the_encoder(tiny, architecture):
    lens = EmbeddingLens(tiny(architecture))
    source, target = sae(0), transcoder(1)
    norm = lens.weights.norm("W_in", 1)
    encoder = target.encoder.double() * norm.gain.double()[:, None]
    encoder = encoder - encoder.mean(0) if norm.centres else encoder
    table = virtual_weights(source, target, lens=lens, k=20)
    weights = source.decoder.double() @ encoder
    score, s, t = pairs_of(table)
    torch.testing.assert_close(score.double(), weights.flatten().topk(20).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score.double(), weights[s, t], rtol=1e-5, atol=1e-5)
    assert not table.equals(virtual_weights(source, target, k=20)), "without a lens, the encoder as it is"


# -- the order of layers


@pytest.mark.parametrize(
    ("hook", "time", "output"),
    [
        ("hook_embed", 0, ""),
        ("blocks.3.hook_resid_pre", 6, ""),
        ("blocks.3.ln1.hook_normalized", 6, ""),
        ("blocks.3.hook_attn_out", 7, "attn"),
        ("blocks.3.hook_resid_mid", 7, ""),
        ("blocks.3.ln2.hook_normalized", 7, ""),
        ("blocks.3.mlp.hook_in", 7, ""),
        ("blocks.3.mlp.hook_out", 8, "mlp"),
        ("blocks.3.hook_mlp_out", 8, "mlp"),
        ("blocks.3.ln2_post.hook_out", 8, "mlp"),
        ("blocks.3.hook_resid_post", 8, ""),
    ],
)
def test_places_of_hook_points(hook, time, output):
    assert place_of(hook) == (time, output)


@pytest.mark.parametrize(
    "hook", ["", "blocks.3.attn.hook_z", "blocks.3.mlp.hook_post", "ln_final.hook_normalized", "a"]
)
def test_other_hook_points_have_no_place(hook):
    assert place_of(hook) is None


def test_mlp_of_a_parallel_block_reads_before_attention_writes(tiny):
    parallel, sequential = (EmbeddingLens(tiny(name)).weights for name in ("gptj", "gpt2"))
    assert place_of("blocks.1.mlp.hook_in", parallel) == (2, "")
    assert place_of("blocks.1.mlp.hook_in", sequential) == (3, "")


def transcoder(layer, n=10):
    hooks = {"hook": f"blocks.{layer}.mlp.hook_in", "output_hook": f"blocks.{layer}.hook_mlp_out"}
    return dictionary(n, name=f"transcoder {layer}", **hooks)


def sae(layer, n=10, point="hook_resid_post"):
    return dictionary(n, name=f"sae {layer}", hook=f"blocks.{layer}.{point}")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (transcoder(0), transcoder(1)),
        (sae(0), sae(0)),
        (sae(0), transcoder(1)),
        (transcoder(1), sae(1)),
        (sae(0, point="hook_attn_out"), transcoder(0)),
        (dictionary(5), transcoder(0)),  # an unknown place
    ],
)
def test_direct_weights_in_order(source, target):
    assert len(virtual_weights(source, target, k=5)) == 5


@pytest.mark.parametrize(
    ("source", "target"),
    [(transcoder(1), transcoder(1)), (transcoder(1), transcoder(0)), (sae(1), sae(0)), (sae(0), transcoder(0))],
)
def test_direct_weights_out_of_order_raise(source, target):
    with pytest.raises(EmbspaceError) as caught:
        virtual_weights(source, target)
    written = source.output_hook or source.hook
    assert str(caught.value) == (
        f"{target.name} reads at {target.hook}, before {source.name} writes at {written}: there is no direct weight. Pass "
        "as source the dictionary that writes first."
    )


def test_output_of_a_sublayer_is_not_read_from_the_stream(lens):
    attention, mlp = sae(1, point="hook_attn_out"), sae(1, point="hook_mlp_out")
    for target, circuit in ((attention, "direct"), (mlp, "direct"), (mlp, "ov")):
        with pytest.raises(EmbspaceError, match="the output of one sublayer, and not the residual stream"):
            virtual_weights(sae(0), target, lens=lens, circuit=circuit, k=2)
    table = virtual_weights(sae(0, point="hook_resid_pre"), attention, lens=lens, circuit="ov", k=2)
    assert set(table["layer"]) == {1}, "the block's own attention alone"


@pytest.mark.parametrize(
    ("source", "target", "circuit", "layers"),
    [
        (sae(0, point="hook_resid_pre"), sae(1), "ov", [0, 1]),
        (sae(0, point="hook_resid_pre"), transcoder(1), "ov", [0, 1]),
        (sae(0, point="hook_resid_pre"), sae(1, point="hook_resid_pre"), "ov", [0]),
        (transcoder(0), transcoder(1), "ov", [1]),
        (sae(0), sae(0), "qk", [1]),
        (sae(0, point="hook_resid_pre"), sae(0, point="hook_resid_pre"), "qk", [0, 1]),
        (sae(0, point="hook_resid_pre"), transcoder(0), "qk", [1]),
    ],
)
def test_heads_between_two_dictionaries_are_read_by_default(lens, source, target, circuit, layers):
    table = virtual_weights(source, target, lens=lens, circuit=circuit, k=1)
    assert table["layer"].unique().tolist() == layers
    assert table.equals(virtual_weights(source, target, lens=lens, circuit=circuit, k=1, layer=layers))


def test_layers_out_of_order_raise(lens):
    with pytest.raises(EmbspaceError) as caught:
        virtual_weights(transcoder(0), transcoder(1), lens=lens, circuit="ov", layer=[0, 1])
    assert str(caught.value) == (
        "circuit='ov' at layer 0 needs features that are written before its attention and, for 'ov', read after it. "
        "Pass one of 1."
    )
    with pytest.raises(EmbspaceError, match="^No attention that is read lies between sae 1 and sae 1 for circuit='qk'"):
        virtual_weights(sae(1), sae(1), lens=lens, circuit="qk")
    for source, target in ((dictionary(5), sae(1)), (sae(0), dictionary(5))):
        with pytest.raises(EmbspaceError) as caught:
            virtual_weights(source, target, lens=lens, circuit="ov")
        assert str(caught.value) == (
            "The place of dictionary of 5 in the model is unknown, so the layers of the heads must be given. Pass layer=, "
            "or hook= to Features."
        )


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 is not an integer from 1 to 90, the number of pairs of features."),
        ({"k": 91}, "k=91 is not an integer from 1 to 90, the number of pairs of features."),
        ({"circuit": "ov"}, "circuit='ov' reads the weights of heads. Pass the model's lens: lens=."),
        (
            {"layer": 0},
            "circuit='direct' passes through no head. Leave layer= and head= out, or pass circuit='ov' or circuit='qk'.",
        ),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(EmbspaceError) as caught:
        virtual_weights(dictionary(9), dictionary(10), **options)
    assert str(caught.value).startswith(message)


def test_unknown_circuit_raises():
    with unchecked_types(), pytest.raises(EmbspaceError, match="circuit=.vo."):
        virtual_weights(dictionary(9), dictionary(10), circuit="vo")


def test_dictionaries_of_other_widths_raise():
    with pytest.raises(EmbspaceError) as caught:
        virtual_weights(dictionary(9, 8), dictionary(10, 6), k=1)
    assert str(caught.value) == (
        "The features of dictionary of 9 have width 8, those of dictionary of 10 6. Pass two dictionaries of one model."
    )
