"""A lens that reads features: every list is that of brute force over the dictionaries, and a dictionary is read where it was trained."""

import pytest
import torch
import zoo
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, Features, salient_operations
from embspace_lens.errors import EmbspaceError
from embspace_lens.space.feature_rows import read_rows, written_rows
from embspace_lens.tables.columns import GLOSSARY

N_UP, N_DOWN = 23, 31


def dictionary(n: int, seed: int, **options) -> Features:
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(n, zoo.D_MODEL, generator=generator)
    encoder = torch.randn(zoo.D_MODEL, n, generator=generator)
    return Features(decoder, encoder, **{"name": f"dictionary {seed}", "hook": "blocks.1.hook_resid_post"} | options)


UP = dictionary(N_UP, 1, labels=[f"up {i}" for i in range(N_UP)])
DOWN = dictionary(N_DOWN, 2)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def lens(request) -> EmbeddingLens:
    return EmbeddingLens(zoo.boot(zoo.ZOO[request.param]()))


@pytest.fixture(scope="module")
def features(lens) -> EmbeddingLens:
    return lens.with_features(source=UP, target=DOWN)


def best(scores: torch.Tensor, k: int) -> list[int]:
    return torch.argsort(scores, descending=True, stable=True)[:k].tolist()


def expected_rows(side: str) -> torch.Tensor:
    return (UP.decoder if side == "read" else DOWN.encoder.T).double()


def test_neurons_and_subheads_are_lists_of_features(lens, features):
    tables = {"neurons": features.neurons(layer=1, neuron=range(5), k=4), "subheads": features.subheads(1, 2, k=4)}
    for df in tables.values():
        keys = [c for c in ("expert", "head", "neuron", "subhead", "weight") if c in df]
        for values, rows in df.groupby(keys, observed=True, sort=False):
            unit = dict(zip(keys, values, strict=True))
            directions = lens.weights.directions(unit["weight"], 1, unit.get("expert", -1)).double()
            x = directions[unit["neuron"]] if "neuron" in unit else directions[unit["head"], unit["subhead"]]
            side = "write" if unit["weight"] in ("W_out", "W_O") else "read"
            assert rows["feature_index"].tolist() == best(expected_rows(side) @ x, 4)
        assert "token_index" not in df and list(df.columns) == [c for c in GLOSSARY if c in df.columns]
        reading = df[df["weight"].isin(["W_in", "W_Q"])]
        assert (reading["feature_label"] == "up " + reading["feature_index"].astype(str)).all()


@pytest.mark.parametrize("name", ["W_OV", "W_QK"])
def test_pairs_of_features_are_exact(lens, features, name):
    df = (features.ov if name == "W_OV" else features.qk)(layer=0, head=1, k=6)
    form = getattr(lens.weights, name)(0)[1].AB.double()
    second = expected_rows("write" if name == "W_OV" else "read")
    scores = expected_rows("read") @ form @ second.T
    first, last = ("src", "dest") if name == "W_OV" else ("dest", "src")
    index = df[f"{first}_feature_index"] * len(second) + df[f"{last}_feature_index"]
    assert index.tolist() == best(scores.flatten(), 6)


def test_with_one_dictionary_the_other_side_is_tokens(lens):
    target_only, source_only = lens.with_features(target=DOWN), lens.with_features(source=UP)
    df = target_only.neurons(layer=0, neuron=[0], k=3)
    plain = lens.neurons(layer=0, neuron=[0], k=3)
    is_writing = (df["weight"] == "W_out").to_numpy()
    assert (df["token_index"] == -1).tolist() == is_writing.tolist()
    assert (df["feature_index"] == -1).tolist() == (~is_writing).tolist()
    assert df["token_index"][~is_writing].tolist() == plain["token_index"][~is_writing].tolist()
    assert df["token_string"][~is_writing].tolist() == plain["token_string"][~is_writing].tolist()
    assert not df["token_string"][is_writing].any() and not df["feature_label"][~is_writing].any()
    columns = ["layer", "head", "weight", "rank", "dest_token_index", "dest_token_string", "src_feature_index"]
    assert source_only.ov(0, 0, k=1).columns.tolist() == [*columns, "src_feature_label", "score"]


@pytest.mark.parametrize("score", ["dot", "centered", "cosine"])
def test_scores_are_those_of_the_lens(score):
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["llama"]()), score=score).with_features(source=UP, target=DOWN)
    rows = expected_rows("write")
    rows = rows if score == "dot" else rows - rows.mean(0)
    x = lens.weights.W_out(0)[3].double()
    if score == "cosine":
        rows, x = torch.nn.functional.normalize(rows, dim=1), torch.nn.functional.normalize(x, dim=0)
    df = lens.neurons(layer=0, neuron=3, weight="W_out", k=3)
    torch.testing.assert_close(torch.tensor(df["score"].to_numpy()).double(), (rows @ x).sort(descending=True)[0][:3])
    torch.testing.assert_close(lens.project(x.float()).double(), rows @ x, atol=1e-5, rtol=1e-5)


def test_a_search_looks_for_a_feature_on_each_side(features):
    found = features.search("up 3", k=2)
    assert set(found["feature_label"]) == {"up 3"}
    assert set(found["weight"]) <= {"W_in", "W_gate", "W_Q", "W_K", "W_V", "W_QK"}
    both = features.search(4, k=1).set_index("weight")["feature_label"]
    assert both["W_Q"] == "up 4" and both["W_O"] == "4"
    again = features.read(found[found["neuron"] >= 0], k=N_UP)
    searched = again[(again["feature_index"] == 3)]
    assert searched["rank"].tolist() == searched["token_rank"].tolist()
    with pytest.raises(EmbspaceError, match="dictionary 2 has no feature with the label 'up 3'"):
        features.search("up 3", weight="W_O")


def test_singular_directions_and_vectors_are_read(features):
    df = features.singular(layer=0, head=0, n_directions=2, k=3)
    assert df.groupby(["component", "side"], observed=True).size().tolist() == [3] * 4
    vectors = features.directions(DOWN.encoder[:, :4].T, k=1)
    assert vectors["feature_index"].tolist() == [
        best(expected_rows("write") @ DOWN.encoder[:, i].double(), 1)[0] for i in range(4)
    ]
    assert features.directions(UP, side="read", k=1).shape[0] == N_UP


def test_features_are_shown_by_their_labels(features):
    shown = repr(features.neurons(layer=0, neuron=0, k=3).embspace.show())
    assert "features, best first" in shown and "up␣" in shown and "#" in shown
    html = features.ov(0, 0, k=2).embspace.show()._repr_html_()
    assert "up␣" in html or "up " in html
    assert features.neurons(layer=0, neuron=0).embspace.plot() is not None
    assert features.ov(0, 0).embspace.plot() is not None


# -- where a dictionary was trained


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_in"])
def test_an_encoder_reads_what_the_forward_pass_has_at_its_hook(name, hook):
    """Its products with the values at the hook are those of its row with the stream, divided by the norm's scale."""
    model = zoo.boot(zoo.ZOO[name]())
    weights = EmbeddingLens(model).weights
    read = dictionary(N_DOWN, 3, hook=hook)
    _, cache = model.run_with_cache(torch.tensor([[5, 9, 11, 3]]))
    stream, value = cache["blocks.1.hook_resid_mid"].double(), cache[hook].double()
    rows = read_rows(weights, read)[:].double()
    norm = weights.norm("W_in", 1)
    centred = stream - stream.mean(-1, keepdim=True) if norm.centres else stream
    scale = (centred.square().mean(-1, keepdim=True) + weights.host.eps).sqrt()
    scale = torch.ones_like(scale) if hook.endswith("resid_mid") else scale
    bias = (
        norm.bias.double() if norm.bias is not None and hook.endswith("hook_in") else torch.zeros(zoo.D_MODEL).double()
    )
    assert read.encoder is not None
    encoder = read.encoder.double()
    torch.testing.assert_close(stream @ rows.T / scale + bias @ encoder, value @ encoder, atol=1e-5, rtol=1e-5)


def test_what_is_folded_in_is_said():
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]()))
    assert "dictionary 3 (31 features; ln2 gain + centred)" in repr(
        lens.with_features(target=dictionary(N_DOWN, 3, hook="blocks.0.mlp.hook_in"))
    )
    assert "dictionary 3 (31 features; centred)" in repr(
        lens.with_features(target=dictionary(N_DOWN, 3, hook="blocks.0.ln2.hook_normalized"))
    )
    assert "writes dictionary 3 (31 features)" in repr(lens.with_features(target=dictionary(N_DOWN, 3)))


def test_a_dictionary_of_a_centred_stream_reads_centred_vectors():
    """The products of its rows with the raw stream are those of its encoder with the centred one."""
    weights = EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]())).weights
    centred = dictionary(N_DOWN, 3, trained_on="centred")
    x = torch.randn(5, zoo.D_MODEL)
    rows = read_rows(weights, centred)[:]
    assert centred.encoder is not None
    torch.testing.assert_close(x @ rows.T, (x - x.mean(-1, keepdim=True)) @ centred.encoder, atol=1e-5, rtol=1e-5)


def test_a_processed_model_reads_a_raw_dictionary_as_the_raw_model_does():
    """Folding moves the gain into W_in, and leaves the stream as it is: rows at the stream and before the gain are equal."""
    raw = EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]()))
    processed = EmbeddingLens(zoo.compat(zoo.boot(zoo.ZOO["gpt2"]())))
    for hook in ("blocks.1.hook_resid_post", "blocks.1.ln2.hook_normalized"):
        up, down = dictionary(N_UP, 1, hook=hook), dictionary(N_DOWN, 2, hook=hook)
        tables = [
            each.with_features(source=up, target=down).neurons(layer=1, weight="W_in", k=3) for each in (raw, processed)
        ]
        assert tables[0]["feature_index"].tolist() == tables[1]["feature_index"].tolist()
    with pytest.raises(EmbspaceError, match="was folded into the weights"):
        processed.with_features(target=dictionary(N_DOWN, 2, hook="blocks.1.mlp.hook_in", trained_on="raw"))


def test_a_decoder_before_the_norm_after_the_mlp_writes_through_its_gain():
    lens = EmbeddingLens(zoo.boot(zoo.ZOO["gemma2"]()))
    before = dictionary(N_UP, 1, hook="blocks.1.mlp.hook_in", output_hook="blocks.1.mlp.hook_out")
    gain = lens.weights.norm("W_out", 1).gain
    torch.testing.assert_close(written_rows(lens.weights, before)[:], before.decoder * gain)
    after = dictionary(N_UP, 1, hook="blocks.1.mlp.hook_in", output_hook="blocks.1.hook_mlp_out")
    torch.testing.assert_close(written_rows(lens.weights, after)[:], after.decoder)


# -- bad input


def test_bad_dictionaries_are_refused(lens):
    wide = Features(torch.randn(4, zoo.D_MODEL + 1), torch.randn(zoo.D_MODEL + 1, 4), name="wide")
    no_encoder = Features(torch.randn(4, zoo.D_MODEL), name="decoder only")
    for options, message in (
        ({}, "needs source=, target=, or both"),
        ({"source": "gpt2"}, "str is not a dictionary"),
        ({"target": wide}, "wide have width 33"),
        ({"target": no_encoder}, "decoder only has no encoder"),
        ({"source": dictionary(4, 1, hook="blocks.7.hook_resid_post")}, "has 2 layers"),
        ({"source": dictionary(4, 1, hook="blocks.0.attn.hook_z")}, "not residual vectors"),
    ):
        with unchecked_types(), pytest.raises(EmbspaceError, match=message):
            lens.with_features(**options)


def test_functions_that_need_tokens_say_so(features):
    with pytest.raises(EmbspaceError, match="reads features, and the function needs tokens"):
        salient_operations(features)
    with pytest.raises(EmbspaceError, match="compares the texts of tokens"):
        features.ov(0, exclude_same="exact")
    with pytest.raises(EmbspaceError, match="k=24 .* 23, the number of features that this lens reads"):
        features.neurons(0, 0, weight="W_in", k=N_UP + 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Features(torch.randn(3)), "decoder of features has the shape"),
        (lambda: Features(torch.randn(3, 4), torch.randn(3, 4)), "encoder of features has the shape"),
        (lambda: Features(torch.full((3, 4), torch.nan)), "decoder of features"),
        (lambda: Features(torch.randn(3, 4), labels=["a", "b"]), "2 labels were given for the 3 features"),
        (lambda: Features(torch.randn(3, 4), labels=["a", "b", "a"]), "have the label 'a'"),
        (lambda: Features(torch.randn(3, 4)).index(3), "feature=3 is out of range"),
        (lambda: Features(torch.randn(3, 4), labels=list("abc")).index("d"), "no feature with the label 'd'"),
        (lambda: Features(torch.randn(3, 4)).encode(torch.randn(4)), "has no encoder with a non-linearity"),
    ],
)
def test_bad_input_of_features(make, message):
    with unchecked_types(), pytest.raises(EmbspaceError, match=message):
        make()
