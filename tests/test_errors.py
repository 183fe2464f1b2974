"""Wrong arguments raise messages that state what was given, what is allowed and how to fix it."""

import numpy as np
import pytest
import torch
import zoo
from unchecked import unchecked_types

from embspace_lens import EmbeddingLens, EmbspaceError, errors

MESSAGES = [
    (lambda lens: lens.neurons(layer=14), "layer=14 is out of range: zoo has 2 layers (0 to 1)."),
    (lambda lens: lens.neurons(layer=-1), "layer=-1 is out of range: zoo has 2 layers (0 to 1)."),
    (lambda lens: lens.neurons(layer=[0, 2]), "layer=2 is out of range: zoo has 2 layers (0 to 1)."),
    (
        lambda lens: lens.neurons(layer="3"),
        "layer='3' does not select anything. Give an int, a range, a slice, a sequence of ints, or None for all.",
    ),
    (
        lambda lens: lens.neurons(layer=True),
        "layer=True does not select anything. Give an int, a range, a slice, a sequence of ints, or None for all.",
    ),
    (lambda lens: lens.ov(head=4), "head=4 is out of range: zoo has 4 heads (0 to 3)."),
    (
        lambda lens: lens.neurons(layer=1, neuron=48),
        "neuron=48 is out of range: zoo has 48 neurons in its widest MLP (0 to 47).",
    ),
    (
        lambda lens: lens.neurons(weight="Wout"),
        "weight='Wout' is not one of 'W_in', 'W_gate', 'W_out'. Did you mean 'W_out'?",
    ),
    (
        lambda lens: lens.subheads(weight="W_OV"),
        "weight='W_OV' is not one of 'W_Q', 'W_K', 'W_V', 'W_O'. Did you mean 'W_V'?",
    ),
    (lambda lens: lens.neurons(weight="W_gate"), "zoo's MLP in block 0 is not gated: it has no W_gate."),
    (lambda lens: lens.search(5, weight="W_gate"), "zoo's MLP in block 0 is not gated: it has no W_gate."),
    (lambda lens: lens.neurons(k=0), "k=0 is not an integer from 1 to 97, the number of tokens that this lens reads."),
    (
        lambda lens: lens.neurons(k=98),
        "k=98 is not an integer from 1 to 97, the number of tokens that this lens reads.",
    ),
    (
        lambda lens: lens.neurons(k=2.5),
        "k=2.5 is not an integer from 1 to 97, the number of tokens that this lens reads.",
    ),
    (
        lambda lens: lens.ov(k=9410),
        "k=9410 is not an integer from 1 to 9,409, the number of pairs of tokens that this lens reads.",
    ),
    (lambda lens: lens.search(5, k=0), "k=0 is not an integer of 1 or more."),
    (lambda lens: lens.singular(n_directions=0), "n_directions=0 is not an integer of 1 or more."),
    (lambda lens: lens.singular(weight="W_in", head=1), "head=1 selects nothing: W_in has no heads."),
    (
        lambda lens: lens.directions(torch.ones(2, 40)),
        "vectors have width 40, but zoo's residual stream has d_model=32. Are they from another model?",
    ),
    (
        lambda lens: lens.project(torch.ones(2, 40)),
        "vectors have width 40, but zoo's residual stream has d_model=32. Are they from another model?",
    ),
    (
        lambda lens: lens.directions(torch.full((2, 32), torch.nan)),
        "NaN or infinite values in the vectors given. They have no rank: replace them, or check the checkpoint.",
    ),
    (
        lambda lens: lens.directions(torch.ones(2, 2, 32)),
        "vectors have shape (2, 2, 32). Give [n, d_model], one direction per row.",
    ),
    (
        lambda lens: lens.directions(torch.ones(2, 32), names=["a"]),
        "names has 1 entries for 2 vectors. Give one name per vector.",
    ),
    (
        lambda lens: lens.directions(torch.ones(2, 32), names=["a", "a"]),
        "names holds 'a' more than once. Rows of the table are identified by their direction's name.",
    ),
    (
        lambda lens: lens.directions(torch.ones(32), side="wirte"),
        "side='wirte' is not one of 'read', 'write'. Did you mean 'write'?",
    ),
    (lambda lens: lens.embed(torch.ones(3)), "scores have 3 columns, but zoo has 97 tokens."),
    (lambda lens: lens.search(97), "token=97 is out of range: zoo has 97 tokens (0 to 96)."),
    (
        lambda lens: lens.search("w5 w6"),
        "\"w5 w6\" is 2 tokens in this vocabulary ('w5', 'w6'); each string given to search() must be one token.",
    ),
    (
        lambda lens: lens.search("W5"),
        "\"W5\" is not a token of this vocabulary; each string given to search() must be one token. Did you mean 'w5'?",
    ),
    (lambda lens: lens.search(3.5), "token=3.5 is neither a string nor a token id."),
]


@pytest.fixture(scope="module")
def lens_with_words():
    return EmbeddingLens(zoo.boot(zoo.ZOO["gpt2"]()), tokenizer=zoo.tokenizer())


@pytest.mark.parametrize(("call", "message"), MESSAGES, ids=[s for _, s in MESSAGES])
def test_invalid_arguments_of_readings_raise_exact_messages(lens_with_words, call, message):
    with unchecked_types(), pytest.raises(EmbspaceError) as caught:
        call(lens_with_words)
    assert str(caught.value) == message


OPTIONS = [
    (dict(space="unmbed"), "space='unmbed' is not one of 'circuit', 'unembed', 'embed'. Did you mean 'unembed'?"),
    (dict(inverse="ridge"), "inverse='ridge' is not one of 'transpose', 'pinv'."),
    (dict(score="cos"), "score='cos' is not one of 'dot', 'centered', 'cosine'. Did you mean 'cosine'?"),
    (
        dict(vocabulary="word"),
        "vocabulary='word' is not one of 'ascii', 'words', 'trained', 'frequent'. Did you mean 'words'?",
    ),
    (
        dict(vocabulary=np.zeros(97, bool)),
        "The token mask 'given' selects no token of zoo. "
        "Use vocabulary='ascii', which selects 97, or vocabulary=None for all tokens.",
    ),
    (dict(vocabulary=np.ones(96, bool)), "The token mask has shape (96,), but zoo has 97 tokens. Give [97]."),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[s for _, s in OPTIONS])
def test_invalid_options_of_a_lens_raise_exact_messages(tiny, options, message):
    with unchecked_types(), pytest.raises(EmbspaceError) as caught:
        EmbeddingLens(tiny("gpt2"), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("n_options", [1, 2, 4])
def test_choice_names_every_option(n_options):
    options = ["alpha", "beta", "gamma", "delta"][:n_options]
    message = str(errors.choice("x", "?", options))
    assert all(repr(option) in message for option in options)


def test_strings_need_a_tokenizer(tiny):
    model = zoo.boot(zoo.ZOO["gpt2"]())
    model.tokenizer = None
    lens = EmbeddingLens(model)
    assert lens.neurons(layer=0, neuron=0, k=1)["token_string"].tolist() == [
        str(i) for i in lens.neurons(layer=0, neuron=0, k=1)["token_index"]
    ]
    with pytest.raises(
        EmbspaceError, match="zoo has no tokenizer, so search\\(\\) cannot look up words. Give a token id"
    ):
        lens.search(" Paris")


def test_a_token_outside_the_mask_raises(tiny):
    lens = EmbeddingLens(tiny("gpt2"), vocabulary=[1, 2])
    with pytest.raises(
        EmbspaceError, match="token 5 is not among the 2 tokens that this lens reads. Add it to vocabulary="
    ):
        lens.search(5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_raise(value):
    model = zoo.boot(zoo.ZOO["llama"]())
    lens = EmbeddingLens(model)
    with torch.no_grad():
        unwrapped = model.original_model.model.layers[1].mlp
        next(p for n, p in unwrapped.named_parameters() if "up_proj" in n)[3, 4] = value
    assert len(lens.neurons(layer=0))
    with pytest.raises(EmbspaceError, match="NaN or infinite values in W_in of block 1 of zoo"):
        lens.neurons()
    with torch.no_grad():
        model.W_E[5, 5] = value
    with pytest.raises(EmbspaceError, match="NaN or infinite values in W_E of zoo"):
        EmbeddingLens(model)


def test_objects_that_are_not_models_raise():
    for not_a_model in ("gpt2", None, torch.nn.Linear(2, 2)):
        with pytest.raises(EmbspaceError, match="is not a TransformerLens model. Wrap it"):
            EmbeddingLens(not_a_model)


@pytest.mark.parametrize(
    ("family", "call", "match"),
    [
        ("t5", lambda lens: lens.neurons(), "is an encoder–decoder model: only its W_E and W_U can be read"),
        ("mamba", lambda lens: lens.neurons(), "no MLP"),
        ("mamba", lambda lens: lens.ov(), "no attention"),
        ("jamba", lambda lens: lens.ov(layer=0), "block 0 has no attention. Blocks with one: 1, 3"),
        ("deepseek_v2", lambda lens: lens.qk(distance=1), "multi-head latent attention"),
        ("opt_350m", lambda lens: lens.ov(), "its width is 16"),
    ],
)
def test_unsupported_weights_raise_and_others_are_read(tiny, family, call, match):
    with pytest.raises(EmbspaceError, match=match):
        lens = EmbeddingLens(tiny(family))
        if family != "opt_350m":
            assert len(lens.directions(torch.ones(32))) == 10
            assert len(lens.components())
        call(lens)


@pytest.mark.parametrize("index", [np.int64(1), torch.tensor(1), np.array(1), np.array([1]), torch.tensor([1])])
def test_scalars_of_tables_and_tensors_select(lens_with_words, index):
    assert lens_with_words.neurons(layer=index, k=1).equals(lens_with_words.neurons(layer=1, k=1))
    with unchecked_types():
        assert lens_with_words.weights.W_Q(np.int64(1)).shape == (4, 32, 8)


def test_vectors_of_other_types_give_equal_scores(lens_with_words):
    x = torch.randn(2, 32)
    expected = lens_with_words.directions(x, k=3)
    for same_vectors in (x.numpy(), list(x), x.tolist(), x.double()):
        np.testing.assert_allclose(lens_with_words.directions(same_vectors, k=3)["score"], expected["score"], rtol=1e-5)
    assert torch.allclose(lens_with_words.project(x.numpy()), lens_with_words.project(x))
    with pytest.raises(EmbspaceError, match="vectors cannot be made a tensor"):
        lens_with_words.directions("word")


def test_damaged_model_folders_raise(tmp_path):
    from embspace_lens import demo

    for part in ("tokenizer", "reviews-small-0"):
        for path in (p for p in (demo.MODELS / part).iterdir() if p.is_file()):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EmbspaceError, match="truncated or damaged"):
        EmbeddingLens.from_pretrained(tmp_path)


def test_unreadable_weights_are_listed():
    model = zoo.boot(zoo.ZOO["llama"]())
    mlp = model.original_model.model.layers[0].mlp
    gate = next(module for name, module in mlp.named_modules() if name.endswith("gate_proj._original_component"))
    gate.weight = torch.nn.Parameter(gate.weight.to(torch.int8), requires_grad=False)
    lens = EmbeddingLens(model)
    assert repr(lens).startswith("EmbeddingLens(zoo: 2 layers")
    table = lens.components().set_index(["layer", "weight"])
    assert "cannot be read" in table.loc[(0, "W_gate"), "note"] and table.loc[(0, "W_gate"), "rows"] == 0
    assert table.loc[(1, "W_gate"), "rows"] == 32


def test_folders_without_a_model_raise(tmp_path):
    with pytest.raises(EmbspaceError, match="holds no config.json"):
        EmbeddingLens.from_pretrained(tmp_path)
    with pytest.raises(EmbspaceError, match="does not exist"):
        EmbeddingLens.from_pretrained(tmp_path / "nothing")
