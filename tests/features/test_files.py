"""Dictionaries of features read from the layouts of their publishers, and saved."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import feature_files
import numpy as np
import pytest
import torch
from feature_files import LAYOUTS, D, N, sae_tensors, version_6, write
from safetensors.torch import load_file, save_file

from embspace_lens import EmbspaceError
from embspace_lens.factors import Factors
from embspace_lens.features import Activation, Features
from embspace_lens.features.encoders import SparseCoding

X = 2 * feature_files.numbers(7, D, seed=99).double()


def load(stored):
    return Features.load(stored.path, **stored.options)


# -- What is read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_outputs_equal_the_publishers_formulas(layout, tmp_path):
    stored = LAYOUTS[layout](tmp_path)
    features = load(stored)
    codes = stored.codes(X.numpy())
    assert (codes != 0).any() and (codes == 0).any()
    np.testing.assert_allclose(features.encode(X).numpy(), codes, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(features.reconstruct(X).numpy(), stored.output(codes, X.numpy()), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_place_in_the_model_is_read(layout, tmp_path):
    stored = LAYOUTS[layout](tmp_path)
    features = load(stored)
    place = (features.hook, features.output_hook, features.layer, features.trained_on)
    assert place == (stored.hook, stored.output_hook, stored.layer, stored.trained_on)
    assert features.name and (features.n_features, features.d_model) == (N, D)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_dictionaries_are_read_as_they_were(layout, tmp_path):
    features = load(LAYOUTS[layout](tmp_path))
    features = replace(features, labels=[f"feature {i}" for i in range(N)])
    again = Features.load(features.save(tmp_path / "saved"))
    assert torch.equal(again.decoder, features.decoder) and torch.equal(again.encoder, features.encoder)
    for name in ("name", "hook", "output_hook", "layer", "trained_on", "notes", "labels"):
        assert getattr(again, name) == getattr(features, name), name
    torch.testing.assert_close(again.encode(X), features.encode(X), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.reconstruct(X), features.reconstruct(X), rtol=1e-6, atol=1e-5)


def test_a_configuration_has_the_fields_of_saelens_6(tmp_path):
    folder = load(feature_files.jumprelu_transcoder(tmp_path)).save(tmp_path / "saved", dtype=torch.float16)
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "d_in": D,
        "d_sae": N,
        "d_out": D,
        "dtype": "float16",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "jumprelu_transcoder",
    }
    assert metadata["hook_name"] == "blocks.3.ln2.hook_normalized"
    assert metadata["hook_name_out"] == "blocks.3.hook_mlp_out"
    assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
    tensors = load_file(folder / "sae_weights.safetensors")
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {
        "W_enc": (D, N),
        "W_dec": (N, D),
        "b_enc": (N,),
        "b_dec": (D,),
        "threshold": (N,),
    }


def test_a_centred_input_is_saved_as_saelens_reads_it(tmp_path):
    folder = load(feature_files.late_flat_standard(tmp_path)).save(tmp_path / "saved")
    assert json.loads((folder / "cfg.json").read_text())["apply_b_dec_to_input"] is True


def test_topk_transcoders_have_an_architecture_that_saelens_refuses(tmp_path):
    folder = load(feature_files.sparsify_transcoder(tmp_path)).save(tmp_path / "saved")
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == "topk_skip_transcoder"


def test_saved_labels_are_replaced(tmp_path):
    features = load(feature_files.jumprelu(tmp_path))
    replace(features, labels=list(map(str, range(N)))).save(tmp_path / "saved")
    features.save(tmp_path / "saved")
    assert Features.load(tmp_path / "saved").labels is None


def test_a_dictionary_can_be_saved_over_its_own_files(tmp_path):
    stored = feature_files.jumprelu(tmp_path)
    features = load(stored)
    codes = features.encode(X)
    assert torch.equal(Features.load(features.save(stored.path)).encode(X), codes)
    assert torch.equal(features.encode(X), codes)  # the earlier file stays mapped


def test_one_tensor_may_serve_twice(tmp_path):
    eye, zero = torch.eye(4), torch.zeros(4)
    features = Features(eye, eye, activation=Activation("jumprelu", zero, threshold=zero), decoder_bias=zero)
    assert torch.equal(Features.load(features.save(tmp_path / "saved")).encoder, eye)


@pytest.mark.parametrize("encoder", [None, torch.ones(D, N)])
def test_directions_without_codes_are_saved(encoder, tmp_path):
    features = Features(torch.ones(N, D), encoder, decoder_bias=torch.ones(D), skip=torch.arange(36.0).view(D, D))
    again = Features.load(features.save(tmp_path / "saved"))
    assert (again.encoder is None) == (encoder is None) and again.activation is None
    assert torch.equal(again.skip, features.skip) and torch.equal(again.decoder_bias, features.decoder_bias)


def test_unstated_hook_points_can_be_given(tmp_path):
    stored = feature_files.per_layer_old(tmp_path)
    features = Features.load(stored.path, hook="blocks.1.mlp.hook_in", output_hook="blocks.1.hook_mlp_out")
    assert features.is_transcoder and features.hook == "blocks.1.mlp.hook_in" and features.layer == 1


def test_one_layer_of_a_folder_needs_no_choice(tmp_path):
    stored = feature_files.per_layer(tmp_path)
    (stored.path / "layer_0.safetensors").unlink()
    assert Features.load(stored.path).layer == 1


def test_codes_need_the_factor_of_the_inputs(tmp_path):
    stored = feature_files.average_norm(tmp_path)
    features = Features.load(stored.path)
    assert features["3"].shape == (D,) and features.notes
    with pytest.raises(EmbspaceError, match="input_scale="):
        features.encode(X)


def test_models_without_layer_norm_are_not_called_centred(tmp_path):
    stored = feature_files.saelens(tmp_path, feature_files.version_1(model_name="gemma-2b"), sae_tensors())
    assert load(stored).trained_on == ""


def test_layer_norm_leaves_no_mean_in_the_encoder(tmp_path):
    features = load(feature_files.layer_norm(tmp_path))
    assert features.encoder.mean(0).abs().max() < 1e-6 and len(features.notes) == 1


# -- Transformer factors


def test_factors_are_read_as_features(tmp_path):
    factors = Factors(torch.nn.functional.normalize(feature_files.numbers(N, D)), l1=0.3)
    features = Features.load(factors.save(tmp_path / "factors"))
    assert torch.equal(features.decoder, factors.directions) and torch.equal(features.encoder, factors.directions.T)
    torch.testing.assert_close(features.encode(X.float()), factors.encode(X.float()))
    labelled = replace(features, labels=list("abcdefghijkl"), hook="blocks.1.hook_resid_post", layer=1)
    again = Features.load(labelled.save(tmp_path / "saved"))
    assert again.labels == labelled.labels and again.hook == labelled.hook
    assert isinstance(again.activation, SparseCoding) and again.activation.l1 == 0.3


# -- Precision and memory


def test_stored_precision_is_kept_and_files_are_mapped(tmp_path):
    tensors = {name: each.bfloat16() for name, each in sae_tensors().items()}
    features = load(feature_files.saelens(tmp_path, version_6(dtype="bfloat16"), tensors))
    assert features.decoder.dtype is features.encoder.dtype is torch.bfloat16
    # Both matrices are parts of one mapped file.
    assert features.decoder.untyped_storage().data_ptr() == features.encoder.untyped_storage().data_ptr()
    x = X.float()
    expected = (x.double() @ features.encoder.double() + features.activation.bias.double()).relu()
    torch.testing.assert_close(features.encode(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        features.decode(expected.float()).double(),
        expected @ features.decoder.double() + features.decoder_bias.double(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_transposed_matrices_are_views_of_the_file(tmp_path):
    features = load(feature_files.sparsify(tmp_path))
    assert features.encoder.stride() == (1, D)


def test_products_do_not_depend_on_their_parts(tmp_path):
    from embspace_lens.search.tiles import chunk_bytes

    tensors = {name: each.half() for name, each in sae_tensors().items()}
    features = load(feature_files.saelens(tmp_path, version_6(), tensors))
    codes, output = features.encode(X), features.reconstruct(X)
    with chunk_bytes(1):
        torch.testing.assert_close(features.encode(X), codes)
        torch.testing.assert_close(features.reconstruct(X), output)


def test_one_written_layer_is_a_view_of_the_file(tmp_path):
    features = load(feature_files.across_layers(tmp_path))
    assert features.decoder.stride() == (2 * D, 1)


def test_other_layers_of_a_cross_layer_transcoder_are_not_needed(tmp_path):
    stored = feature_files.across_layers(tmp_path)
    for layer in (0, 2):
        for name in ("W_enc", "W_dec"):
            (stored.path / f"{name}_{layer}.safetensors").unlink()
    del stored.options["layer"]
    assert load(stored).layer == 1


# -- Bad input


def refused(path, message, **options):
    with pytest.raises(EmbspaceError, match=message) as caught:
        Features.load(path, **options)
    assert str(caught.value).count("\n") == 0


def folder_with(tmp_path, config=None, weights="sae_weights.safetensors", **tensors):
    tensors = {name: each for name, each in sae_tensors(**tensors).items() if each is not None}
    return write(tmp_path / "sae", tensors, weights, cfg=version_6() if config is None else config)


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {"W_dec": None}, "has no tensor W_dec"),
        ({}, {"W_enc": None}, "has no tensor W_enc"),
        ({}, {"b_enc": None}, "has no tensor b_enc"),
        ({"architecture": "jumprelu"}, {}, "has no tensor threshold"),
        ({"architecture": "gated"}, {}, "has no tensor b_mag"),
        ({"architecture": "skip_transcoder"}, {}, "has no tensor W_skip"),
        ({}, {"W_enc": torch.ones(D, N + 1)}, "W_enc of .* has the shape"),
        ({}, {"W_enc": torch.ones(N, D)}, "W_enc of .* has the shape"),
        ({}, {"b_dec": torch.ones(D + 1)}, "b_dec of .* has the shape"),
        ({}, {"W_dec": torch.ones(N)}, "W_dec of .* has the shape"),
        (
            {},
            {"W_dec": torch.ones(N, D + 1), "b_dec": torch.ones(D + 1)},
            "W_dec of .* has the shape .12, 7., but .12, 6.",
        ),
        ({}, {"W_dec": torch.ones(0, D)}, "W_dec of .* has the shape"),
        ({}, {"W_dec": torch.ones(N, D, dtype=torch.int64)}, "stored as torch.int64"),
        ({}, {"W_dec": torch.full((N, D), torch.nan)}, "decoder of"),
        ({}, {"W_enc": torch.full((D, N), torch.inf)}, "encoder of"),
        ({}, {"b_enc": torch.full((N,), torch.nan)}, "b_enc of"),
        ({}, {"surprise": torch.ones(N)}, "contains 'surprise'"),
        ({}, {"threshold": torch.ones(N)}, "contains 'threshold'"),
        ({"d_in": D + 1}, {}, "d_in in .* is 7, but 6"),
        ({"d_sae": 2 * N}, {}, "d_sae in .* is 24, but 12"),
        ({"d_sae": "many"}, {}, "d_sae in .* is 'many'"),
        ({"d_sae": float("nan")}, {}, "d_sae in .* is nan"),
        ({"architecture": "temporal"}, {}, "architecture 'temporal'"),
        ({"architecture": "matching_pursuit"}, {}, "architecture 'matching_pursuit'"),
        ({"architecture": 3}, {}, "architecture in .* is 3"),
        ({"architecture": "topk"}, {}, "k in .* is None"),
        ({"architecture": "topk", "k": 0}, {}, "k in .* is 0"),
        ({"architecture": "topk", "k": 2.5}, {}, "k in .* is 2.5"),
        ({"architecture": "transcoder", "apply_b_dec_to_input": True}, {}, "apply_b_dec_to_input in .* is True"),
        ({"apply_b_dec_to_input": "yes"}, {}, "apply_b_dec_to_input in .* is 'yes'"),
        ({"normalize_activations": "batch"}, {}, "normalize_activations in .* is 'batch'"),
        ({"normalize_activations": ["none"]}, {}, "normalize_activations in"),
        ({"activation_fn_str": "gelu"}, {}, "activation_fn in .* is 'gelu'"),
        ({"reshape_activations": "hook_z"}, {}, "not residual vectors"),
        ({"metadata": {"hook_name": "blocks.3.attn.hook_z"}}, {}, "hook_z, whose activations are not residual"),
        ({"metadata": {"hook_name": "blocks.3.mlp.hook_post"}}, {}, "hook_post, whose activations are not residual"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_pre", "hook_head_index": 2}}, {}, "not residual vectors"),
        ({"finetuning_scaling_factor": False}, {"scaling_factor": 2 * torch.ones(N)}, "finetuning_scaling_factor in"),
    ],
)
def test_saelens_folders_that_disagree_raise(config, tensors, message, tmp_path):
    refused(folder_with(tmp_path, version_6() | config, **tensors), message)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "null", "3"])
def test_damaged_configurations_raise(text, tmp_path):
    folder = folder_with(tmp_path)
    (folder / "cfg.json").write_text(text)
    refused(folder, "cfg.json")


def test_a_missing_configuration_raises(tmp_path):
    folder = folder_with(tmp_path)
    (folder / "cfg.json").unlink()
    refused(folder, "has no cfg.json")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files_raise(layout, tmp_path):
    stored = LAYOUTS[layout](tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".safetensors", ".npz"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(stored.path, "truncated or damaged", **stored.options)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_files_that_are_not_safetensors_raise(content, tmp_path):
    folder = folder_with(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(content)
    refused(folder, "truncated or damaged")


def test_python_objects_are_not_loaded(tmp_path):
    (tmp_path / "ae.pt").write_bytes(b"anything")
    for path in (tmp_path, tmp_path / "ae.pt"):
        refused(path, r"ae.pt contains Python objects.*save\(folder\)")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def test_object_arrays_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {name: each.numpy() for name, each in sae_tensors(threshold=torch.ones(N)).items()}
    np.savez("params.npz", **{**arrays, "b_dec": np.array([Trap()], dtype=object)})
    refused("params.npz", "contains Python objects")
    np.save("x.npy", np.array([Trap()], dtype=object))
    Path("x.npy").rename("y.npz")
    refused("y.npz", "not an npz file")
    assert not Path("was_run").exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_not_npz_raise(content, tmp_path):
    (tmp_path / "params.npz").write_bytes(content)
    refused(tmp_path / "params.npz", "params.npz")


def test_an_array_file_is_not_npz(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "x.npy").rename(tmp_path / "params.npz")
    refused(tmp_path, "not an npz file")


def test_npz_files_that_disagree_raise(tmp_path):
    arrays = {name: each.numpy() for name, each in sae_tensors(threshold=torch.ones(N)).items()}
    for change, message in (
        ({"threshold": np.ones(N + 1)}, "threshold of .* has the shape"),
        ({"W_dec": np.ones((D, N))}, "w_dec of .* has the shape"),
        ({"b_enc": np.full(N, np.nan)}, "b_enc of"),
        ({"other": np.ones(1)}, "contains 'other'"),
        ({"b_enc": np.array(["a"] * N)}, "params.npz cannot be read"),
    ):
        np.savez(tmp_path / "params.npz", **{**arrays, **change})
        refused(tmp_path, message)


def test_heads_of_gemma_scope_are_not_residual(tmp_path):
    stored = feature_files.gemma_scope(tmp_path / "x")
    path = tmp_path / "gemma-scope-9b-it-att/layer_3/width_16k/average_l0_9/params.npz"
    path.parent.mkdir(parents=True)
    stored.path.rename(path)
    refused(path, "blocks.3.attn.hook_z, whose activations are not residual vectors")


def test_unknown_layouts_raise(tmp_path):
    refused(tmp_path / "nothing", "does not exist")
    refused(tmp_path, "no known layout")
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path, "It contains 'notes.txt'")
    refused(tmp_path / "notes.txt", "no known layout")
    save_file({"x": torch.ones(1)}, tmp_path / "params_layer_0.safetensors")
    refused(tmp_path, "cross-layer transcoder or a crosscoder")


def test_layers_must_be_given_and_exist(tmp_path):
    stored = feature_files.per_layer(tmp_path)
    refused(stored.path, "No layer was given: .* contains the layers 0, 1")
    refused(stored.path, "layer=7 is not there", layer=7)
    across = feature_files.across_layers(tmp_path / "x").path
    refused(across, "No layer was given: .* the layers 0, 1, 2", output_layer=1)
    refused(across, "No output_layer was given: layer 1 .* the layers 1 to 2", layer=1)
    refused(across, "output_layer=0 is out of range", layer=1, output_layer=0)
    refused(across, r"output_layer=\[1, 3\] is out of range", layer=1, output_layer=[1, 3])
    refused(stored.path, "output_layer is an option of cross-layer", layer=1, output_layer=1)


def test_input_scales_must_be_needed_and_positive(tmp_path):
    refused(feature_files.nested_standard(tmp_path / "a").path, "Leave it out", input_scale=2.0)
    refused(feature_files.average_norm(tmp_path / "b").path, "input_scale=0", input_scale=0)
    refused(feature_files.sparsify(tmp_path / "c").path, "input_scale is an option of SAELens", input_scale=2.0)
    config = version_6(architecture="transcoder", normalize_activations="expected_average_only_in")
    refused(folder_with(tmp_path, config), "is a transcoder", input_scale=2.0)
    (tmp_path / "sae" / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    with pytest.raises(EmbspaceError, match="constant factor"):
        Features.load(tmp_path / "sae").encode(X)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation in .* is 'relu'"),
        ({"k": 0}, "k in .* is 0"),
        ({"activation": "groupmax", "k": 5}, "k in .* is 5, but a divisor of 12"),
        ({"num_latents": 99}, "num_latents in .* is 99"),
        ({"expansion_factor": 5}, "expansion_factor in .* is 5"),
        ({"d_in": 5}, "d_in in .* is 5"),
        ({"n_targets": 3}, "n_targets in .* is 3"),
        ({"normalize_io": True}, "normalize_io in .* is True"),
    ],
)
def test_sparsify_folders_that_disagree_raise(fields, message, tmp_path):
    refused(feature_files.sparsify(tmp_path, **fields).path, message)


def test_parts_of_a_fork_of_sparsify_raise_unless_they_have_no_effect(tmp_path):
    stored = feature_files.sparsify(tmp_path)
    tensors = load_file(stored.path / "sae.safetensors")
    save_file(tensors | {"post_enc": torch.zeros(N), "post_enc_scale": torch.ones(N)}, stored.path / "sae.safetensors")
    Features.load(stored.path)
    save_file(tensors | {"post_enc": torch.ones(N)}, stored.path / "sae.safetensors")
    refused(stored.path, "contains 'post_enc'")


@pytest.mark.parametrize(
    "text", ["- a", "{", "activation: gelu", "activation: topk", "transcoders: 3", "layer: !!python/name:os.system ''"]
)
def test_configurations_of_circuit_tracer_that_are_wrong_raise(text, tmp_path):
    stored = feature_files.per_layer(tmp_path)
    (stored.path / "config.yaml").write_text(text)
    if text != "transcoders: 3":
        refused(stored.path, "config.yaml", layer=1)
    else:
        (tmp_path / "config.yaml").write_text(text)
        refused(tmp_path, "transcoders in .* is 3", layer=1)


def test_transcoders_elsewhere_raise(tmp_path):
    (tmp_path / "config.yaml").write_text("transcoders:\n- hf://mntss/x/layer_0.safetensors\n")
    refused(tmp_path, "'hf://mntss/x/layer_0.safetensors', which is not on this machine")
    (tmp_path / "config.yaml").write_text("transcoders:\n- {id: a, layer: 4}\n")
    refused(tmp_path, "None, which is not on this machine", layer=4)


def test_wrong_labels_raise(tmp_path):
    folder = folder_with(tmp_path)
    for text, message in (('{"a": 1}', "not a list of texts"), ('["a"]', "1 labels were given"), ("[", "labels.json")):
        (folder / "labels.json").write_text(text)
        refused(folder, message)


def test_codes_of_a_users_own_are_not_saved(tmp_path):
    class Own:
        def codes(self, x, encoder):
            return x @ encoder

    with pytest.raises(EmbspaceError, match="Own"):
        Features(torch.ones(N, D), torch.ones(D, N), activation=Own()).save(tmp_path / "saved")
    with pytest.raises(EmbspaceError, match="sparse codes"):
        Features(torch.ones(N, D), torch.zeros(D, N), activation=SparseCoding(1.0)).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (N - 1, D - 1), (N // 2, 0)])
def test_every_value_is_checked(dtype, value, place):
    decoder = torch.ones(N, D, dtype=dtype)
    decoder[place] = value
    with pytest.raises(EmbspaceError, match="the decoder of features"):
        Features(decoder)
    with pytest.raises(EmbspaceError, match="the encoder of features"):
        Features(torch.ones(N, D, dtype=dtype), decoder.T)


def test_values_beyond_a_precision_raise(tmp_path):
    features = Features(1e6 * torch.ones(N, D), torch.ones(D, N), activation=Activation())
    with pytest.raises(EmbspaceError, match="W_dec of features in torch.float16"):
        features.save(tmp_path / "saved", dtype=torch.float16)
