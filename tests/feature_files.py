"""Dictionaries of features in the layouts of their publishers, with forward passes in float64 after the publishers' formulas."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

N, D = 12, 6
Array = np.ndarray


@dataclass
class Stored:
    """A dictionary on disk: where it lies, how it is loaded, and what it computes."""

    path: Path
    codes: Callable[[Array], Array]
    output: Callable[[Array, Array], Array]  # of codes and x
    hook: str = ""
    output_hook: str = ""
    layer: int | None = None
    trained_on: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return scale * torch.randn(*shape, generator=generator)


def sae_tensors(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    """W_enc, b_enc, W_dec and b_dec in SAELens's orientation."""
    tensors = {
        "W_enc": numbers(D, N, seed=1),
        "b_enc": numbers(N, seed=2, scale=0.1),
        "W_dec": numbers(N, D, seed=3),
        "b_dec": numbers(D, seed=4, scale=0.3),
    }
    return tensors | others


def write(folder: Path, tensors: dict[str, torch.Tensor], weights: str, **files: Any) -> Path:
    """Write tensors, and JSON files that are given as `cfg={...}`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / weights)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def double(tensors: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def relu(h: Array) -> Array:
    return np.maximum(h, 0)


def largest(h: Array, k: int, by: Array | None = None) -> Array:
    """The k entries of each row that are largest, or largest by other values; the others are 0."""
    order = np.argsort(h if by is None else by, axis=-1)[..., ::-1][..., :k]
    kept = np.zeros_like(h)
    np.put_along_axis(kept, order, np.take_along_axis(h, order, -1), -1)
    return kept


# -- SAELens


def version_1(**fields: Any) -> dict[str, Any]:
    """The whole run's configuration, as before version 3."""
    return {
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        "dataset_path": "text",
        "context_size": 128,
        "d_in": D,
        "d_sae": N,
        "expansion_factor": 2,
        "normalize_activations": False,
        "dtype": "torch.float32",
        **fields,
    }


def version_3(**fields: Any) -> dict[str, Any]:
    return {
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.hook_resid_pre",
        "hook_layer": 8,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": "3.0.0",
        "prepend_bos": True,
        "normalize_activations": "none",
        **fields,
    }


def version_5(**fields: Any) -> dict[str, Any]:
    return version_3(
        architecture="standard",
        sae_lens_training_version="5.11.0",
        model_from_pretrained_kwargs={"center_writing_weights": False},
        neuronpedia_id=None,
        seqpos_slice=[None],
        **fields,
    )


def version_6(metadata: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.21.0",
            "sae_lens_training_version": "6.21.0",
            "hook_name": "blocks.8.hook_resid_pre",
            "hook_name_out": None,
            "hook_head_index": None,
            "model_name": "gpt2-small",
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
            "seqpos_slice": [None],
            **(metadata or {}),
        },
        "architecture": "standard",
        **fields,
    }


def saelens(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    activation: Callable[[Array], Array] = relu,
    *,
    centred: bool = False,
    trained_on: str = "raw",
    encode: Callable[[Array], Array] | None = None,
    scale: Array | float = 1.0,
    **places: Any,
) -> Stored:
    """A folder of SAELens. `centred` means that b_dec is subtracted from the input; `scale` multiplies the codes."""
    t = double(tensors)

    def codes(x: Array) -> Array:
        return activation((x - t["b_dec"] * centred) @ t["W_enc"] + t["b_enc"])

    def output(a: Array, x: Array) -> Array:
        skip = x @ t["W_skip"].T if "W_skip" in t else 0
        return (a * scale) @ t["W_dec"] + t["b_dec"] + skip

    path = write(folder / "blocks.8.hook_resid_pre", tensors, "sae_weights.safetensors", cfg=config)
    return Stored(
        path,
        encode or codes,
        output,
        trained_on=trained_on,
        **{"hook": "blocks.8.hook_resid_pre", "layer": 8, **places},
    )


def early_standard(folder: Path) -> Stored:
    return saelens(folder, version_1(), sae_tensors(), centred=True, trained_on="centred")


def flat_standard(folder: Path) -> Stored:
    return saelens(folder, version_3(), sae_tensors(), centred=True, trained_on="centred")


def late_flat_standard(folder: Path) -> Stored:
    return saelens(folder, version_5(), sae_tensors(), centred=True)


def nested_standard(folder: Path) -> Stored:
    return saelens(folder, version_6(), sae_tensors())


def nested_centred(folder: Path) -> Stored:
    config = version_6({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, apply_b_dec_to_input=True)
    return saelens(folder, config, sae_tensors(), centred=True, trained_on="centred")


def of_transformers(folder: Path) -> Stored:
    metadata = {"hook_name": "model.layers.30", "model_class_name": "AutoModelForCausalLM"}
    config = version_6({**metadata, "model_from_pretrained_kwargs": {}})
    return saelens(folder, config, sae_tensors(), hook="blocks.30.hook_resid_post", layer=30)


def flat_tanh(folder: Path) -> Stored:
    config = version_5(activation_fn_str="tanh-relu")
    return saelens(folder, config, sae_tensors(), lambda h: np.tanh(relu(h)), centred=True)


def flat_topk(folder: Path) -> Stored:
    config = version_5(activation_fn_str="topk", activation_fn_kwargs={"k": 9})
    return saelens(folder, config, sae_tensors(), lambda h: relu(largest(h, 9)), centred=True)


def early_topk(folder: Path) -> Stored:
    config = version_1(activation_fn="topk", activation_fn_kwargs={"k": 3}, apply_b_dec_to_input=False)
    return saelens(folder, config, sae_tensors(), lambda h: relu(largest(h, 3)), trained_on="centred")


def nested_topk(folder: Path) -> Stored:
    config = version_6(architecture="topk", k=4, apply_b_dec_to_input=True)
    return saelens(folder, config, sae_tensors(), lambda h: relu(largest(h, 4)), centred=True)


def rescaled_topk(folder: Path) -> Stored:
    """A training checkpoint, in which the norms of the decoder are not folded yet."""
    tensors = sae_tensors()
    norms = np.linalg.norm(double(tensors)["W_dec"], axis=1)
    config = version_6(architecture="topk", k=4, rescale_acts_by_decoder_norm=True)
    return saelens(folder, config, tensors, lambda h: relu(largest(h * norms, 4)), scale=1 / norms)


def jumprelu(folder: Path) -> Stored:
    threshold = numbers(N, seed=5).abs() - 0.2
    theta = threshold.double().numpy()
    config = version_6(architecture="jumprelu")
    return saelens(folder, config, sae_tensors(threshold=threshold), lambda h: relu(h) * (h > theta))


def flat_jumprelu(folder: Path) -> Stored:
    stored = jumprelu(folder)
    (stored.path / "cfg.json").write_text(json.dumps(version_5() | {"architecture": "jumprelu"}))
    t = double(sae_tensors(threshold=numbers(N, seed=5).abs() - 0.2))

    def codes(x: Array) -> Array:
        h = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
        return relu(h) * (h > t["threshold"])

    stored.codes = codes
    return stored


def batchtopk(folder: Path) -> Stored:
    """A training checkpoint with its threshold of all features."""
    tensors = sae_tensors(topk_threshold=torch.tensor(0.7, dtype=torch.float64))
    config = version_6(architecture="matryoshka_batchtopk", k=2.5)
    return saelens(folder, config, tensors, lambda h: relu(h) * (h > 0.7))


def gated(folder: Path) -> Stored:
    tensors = sae_tensors(b_gate=numbers(N, seed=5), b_mag=numbers(N, seed=6), r_mag=numbers(N, seed=7, scale=0.3))
    del tensors["b_enc"]
    t = double(tensors)

    def codes(x: Array) -> Array:
        centred = x - t["b_dec"]
        is_open = centred @ t["W_enc"] + t["b_gate"] > 0
        return is_open * relu(centred @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])

    return saelens(folder, version_5() | {"architecture": "gated"}, tensors, encode=codes)


def normalized(folder: Path, name: str, architecture: str = "standard") -> Stored:
    """An SAE whose inputs are normalised, and whose output is scaled back."""
    tensors = sae_tensors()
    if architecture == "gated":
        del tensors["b_enc"]
        tensors |= {"b_gate": numbers(N, seed=5), "b_mag": numbers(N, seed=6), "r_mag": numbers(N, seed=7, scale=0.3)}
    t = double(tensors)

    def moments(x: Array) -> tuple[Array, Array]:
        if name == "layer_norm":
            return x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        return np.zeros_like(x[..., :1]), np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(D)

    def codes(x: Array) -> Array:
        mean, deviation = moments(x)
        centred = (x - mean) / (deviation + (1e-5 if name == "layer_norm" else 0)) - t["b_dec"]
        if architecture == "gated":
            is_open = centred @ t["W_enc"] + t["b_gate"] > 0
            return is_open * relu(centred @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])
        return relu(centred @ t["W_enc"] + t["b_enc"])

    def output(a: Array, x: Array) -> Array:
        mean, deviation = moments(x)
        return (a @ t["W_dec"] + t["b_dec"]) * deviation + mean

    stored = saelens(folder, version_5(normalize_activations=name) | {"architecture": architecture}, tensors)
    stored.codes, stored.output = codes, output
    return stored


def layer_norm(folder: Path) -> Stored:
    return normalized(folder, "layer_norm")


def gated_layer_norm(folder: Path) -> Stored:
    return normalized(folder, "layer_norm", "gated")


def norm_rescale(folder: Path) -> Stored:
    return normalized(folder, "constant_norm_rescale")


def average_norm(folder: Path, value: Any = "expected_average_only_in") -> Stored:
    """An SAE of inputs times a factor that must be given."""
    tensors, s = sae_tensors(), 0.25
    t = double(tensors)
    stored = saelens(folder, version_5(normalize_activations=value), tensors)
    stored.codes = lambda x: relu((x * s - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    stored.output = lambda a, x: (a @ t["W_dec"] + t["b_dec"]) / s
    stored.options = {"input_scale": s}
    return stored


def average_norm_flag(folder: Path) -> Stored:
    return average_norm(folder, True)


def average_norm_checkpoint(folder: Path) -> Stored:
    stored = average_norm(folder)
    (stored.path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    stored.options = {}
    return stored


def finetuned(folder: Path) -> Stored:
    factor = numbers(N, seed=8).abs() + 0.5
    config = version_3(finetuning_scaling_factor=True)
    tensors = sae_tensors(finetuning_scaling_factor=factor)
    return saelens(folder, config, tensors, centred=True, trained_on="centred", scale=factor.double().numpy())


def unused_factor(folder: Path) -> Stored:
    return saelens(folder, version_3(), sae_tensors(scaling_factor=torch.ones(N)), centred=True, trained_on="centred")


def transcoder(folder: Path, architecture: str = "transcoder") -> Stored:
    tensors = sae_tensors()
    activation = relu
    if "jumprelu" in architecture:
        tensors["threshold"] = numbers(N, seed=5).abs()
        theta = tensors["threshold"].double().numpy()
        activation = lambda h: relu(h) * (h > theta)  # noqa: E731
    if "skip" in architecture:
        tensors["W_skip"] = numbers(D, D, seed=9)
    places = {"hook": "blocks.3.ln2.hook_normalized", "output_hook": "blocks.3.hook_mlp_out"}
    config = version_6(
        {"hook_name": places["hook"], "hook_name_out": places["output_hook"]}, architecture=architecture, d_out=D
    )
    return saelens(folder, config, tensors, activation, layer=3, **places)


def skip_transcoder(folder: Path) -> Stored:
    return transcoder(folder, "skip_transcoder")


def jumprelu_transcoder(folder: Path) -> Stored:
    return transcoder(folder, "jumprelu_transcoder")


def jumprelu_skip_transcoder(folder: Path) -> Stored:
    return transcoder(folder, "jumprelu_skip_transcoder")


def two_biases(folder: Path) -> Stored:
    """A transcoder as converted from another trainer: b_dec is subtracted from the input, b_dec_out added to the output."""
    tensors = sae_tensors(b_dec_out=numbers(D, seed=10))
    t = double(tensors)
    config = version_5(hook_name="blocks.8.ln2.hook_normalized", hook_name_out="blocks.8.hook_mlp_out")
    places = {"hook": "blocks.8.ln2.hook_normalized", "output_hook": "blocks.8.hook_mlp_out"}
    stored = saelens(folder, config | {"use_b_dec_out": True}, tensors, centred=True, **places)
    stored.output = lambda a, x: a @ t["W_dec"] + t["b_dec_out"]
    return stored


# -- Gemma Scope


def gemma_scope(folder: Path, names: Callable[[str], str] = str, compress: bool = False) -> Stored:
    arrays = {name: each.numpy() for name, each in sae_tensors(threshold=numbers(N, seed=5).abs()).items()}
    path = folder / "models--google--gemma-scope-2b-pt-res" / "snapshots/ab12/layer_20/width_16k/average_l0_71"
    path.mkdir(parents=True)
    (np.savez_compressed if compress else np.savez)(path / "params.npz", **{names(n): a for n, a in arrays.items()})
    t = {name: each.astype(np.float64) for name, each in arrays.items()}

    def codes(x: Array) -> Array:
        h = x @ t["W_enc"] + t["b_enc"]
        return relu(h) * (h > t["threshold"])

    return Stored(
        path / "params.npz",
        codes,
        lambda a, x: a @ t["W_dec"] + t["b_dec"],
        hook="blocks.20.hook_resid_post",
        layer=20,
        trained_on="raw",
    )


def gemma_scope_lowercase(folder: Path) -> Stored:
    stored = gemma_scope(folder, str.lower, compress=True)
    stored.path = stored.path.parent
    return stored


def gemma_scope_transcoder(folder: Path) -> Stored:
    stored = gemma_scope(folder / "x")
    path = folder / "gemma-scope-2b-pt-transcoders/layer_7/width_16k/canonical/params.npz"
    path.parent.mkdir(parents=True)
    stored.path.rename(path)
    stored.path, stored.layer = path, 7
    stored.hook, stored.output_hook = "blocks.7.ln2.hook_normalized", "blocks.7.hook_mlp_out"
    return stored


def gemma_scope_embedding(folder: Path) -> Stored:
    stored = gemma_scope(folder / "x")
    path = folder / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz"
    path.parent.mkdir(parents=True)
    stored.path.rename(path)
    codes, output, root = stored.codes, stored.output, np.sqrt(D)
    stored.codes = lambda x: codes(x / root)
    stored.output = lambda a, x: output(a, x / root) * root
    stored.path, stored.hook, stored.layer = path, "hook_embed", None
    return stored


def gemma_scope_2(folder: Path, has_config: bool = True) -> Stored:
    tensors = {name.lower(): each for name, each in sae_tensors(threshold=numbers(N, seed=5).abs()).items()}
    tensors["affine_skip_connection"] = numbers(D, D, seed=9)
    config = {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
        "width": N,
        "model_name": "google/gemma-3-12b-it",
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": True,
        "type": "transcoder",
    }
    path = folder / "gemma-scope-2-12b-it/transcoder_all/layer_12_width_16k_l0_medium_affine"
    write(path, tensors, "params.safetensors", **({"config": config} if has_config else {}))
    t = double(tensors)

    def codes(x: Array) -> Array:
        h = x @ t["w_enc"] + t["b_enc"]
        return relu(h) * (h > t["threshold"])

    return Stored(
        path,
        codes,
        lambda a, x: a @ t["w_dec"] + t["b_dec"] + x @ t["affine_skip_connection"],
        "blocks.12.mlp.hook_in",
        "blocks.12.hook_mlp_out",
        12,
        "raw",
    )


def gemma_scope_2_without_config(folder: Path) -> Stored:
    return gemma_scope_2(folder, has_config=False)


# -- sparsify


def sparsify(folder: Path, name: str = "layers.5", old: bool = False, **fields: Any) -> Stored:
    tensors = {
        "encoder.weight": numbers(N, D, seed=1),
        "encoder.bias": numbers(N, seed=2, scale=0.1),
        "W_dec": numbers(N, D, seed=3),
        "b_dec": numbers(D, seed=4, scale=0.3),
    }
    config = {
        "activation": "topk",
        "expansion_factor": 2,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 3,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **fields,
    }
    if config["skip_connection"]:
        tensors["W_skip"] = numbers(D, D, seed=9)
    t = double(tensors)
    if old:
        tensors["decoder.weight"], tensors["decoder.bias"] = tensors.pop("W_dec").T, tensors.pop("b_dec")
        tensors["W_enc"], tensors["b_enc"] = tensors.pop("encoder.weight"), tensors.pop("encoder.bias")

    def codes(x: Array) -> Array:
        centred = x if config["transcode"] else x - t["b_dec"]
        h = centred @ t["encoder.weight"].T + t["encoder.bias"]
        if config.get("signed"):
            return largest(h, config["k"], np.abs(h))
        if config["activation"] == "groupmax":
            groups = relu(h).reshape(*h.shape[:-1], config["k"], -1)
            return largest(groups, 1).reshape(h.shape)
        return largest(relu(h), config["k"])

    def output(a: Array, x: Array) -> Array:
        return a @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)

    path = write(folder / "run" / name, tensors, "sae.safetensors", cfg=config)
    return Stored(path, codes, output, "blocks.5.hook_resid_post", layer=5, trained_on="raw")


def sparsify_seed(folder: Path) -> Stored:
    return sparsify(folder, "layers_5/seed1", num_latents=N, expansion_factor=32)


def sparsify_old(folder: Path) -> Stored:
    return sparsify(folder, "h.5", old=True)


def sparsify_signed(folder: Path) -> Stored:
    return sparsify(folder, "model.layers.5", signed=True)


def sparsify_groupmax(folder: Path) -> Stored:
    return sparsify(folder, "gpt_neox.layers.5", activation="groupmax")


def sparsify_transcoder(folder: Path) -> Stored:
    stored = sparsify(folder, "layers.5.mlp", transcode=True, skip_connection=True)
    stored.hook, stored.output_hook = "blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out"
    return stored


def sparsify_attention(folder: Path) -> Stored:
    stored = sparsify(folder, "layers.5.self_attn")
    stored.hook = "blocks.5.hook_attn_out"
    return stored


# -- circuit-tracer

HOOKS = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"


def circuit_tracer(
    folder: Path, old: bool = False, threshold: torch.Tensor | None = None, config: str = "", **others: torch.Tensor
) -> Stored:
    """Two layers, of which the second is loaded."""
    path = folder / "transcoders"
    path.mkdir(parents=True)
    for layer in range(2):
        tensors = {
            "W_enc": numbers(N, D, seed=1 + 20 * layer),
            "b_enc": numbers(N, seed=2, scale=0.1),
            "W_dec": numbers(N, D, seed=3 + 20 * layer),
            "b_dec": numbers(D, seed=4),
            **others,
        }
        if threshold is not None:
            tensors["activation_function.threshold"] = threshold
        t = double(tensors)
        if old:
            tensors["W_dec"] = tensors["W_dec"].T
        write(path, tensors, f"layer_{layer}.safetensors")
    if config:
        (path / "config.yaml").write_text(f"model_name: llama\nmodel_kind: transcoder_set\n{config}")

    def codes(x: Array) -> Array:
        h = x @ t["W_enc"].T + t["b_enc"]
        if "activation: topk" in config or "k" in t:
            return largest(h, 9)  # also values below 0
        return relu(h) if threshold is None else h * (h > t["activation_function.threshold"])

    def output(a: Array, x: Array) -> Array:
        return a @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)

    has_hooks = "hook" in config
    hook, output_hook = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out") if has_hooks else ("", "")
    return Stored(path, codes, output, hook, output_hook, 1, "raw", {"layer": 1})


def per_layer(folder: Path) -> Stored:
    return circuit_tracer(folder, config=HOOKS)


def per_layer_old(folder: Path) -> Stored:
    stored = circuit_tracer(folder, old=True, W_skip=numbers(D, D, seed=9))
    stored.path, stored.options = stored.path / "layer_1.safetensors", {}
    return stored


def per_layer_jumprelu(folder: Path) -> Stored:
    return circuit_tracer(folder, threshold=numbers(N, seed=5).abs(), config=HOOKS)


def per_layer_low_threshold(folder: Path) -> Stored:
    return circuit_tracer(folder, threshold=torch.tensor([-0.4]), config=HOOKS)


def per_layer_topk(folder: Path) -> Stored:
    return circuit_tracer(folder, config=HOOKS + "activation: topk\nk: 9\n")


def per_layer_stored_k(folder: Path) -> Stored:
    return circuit_tracer(folder, config=HOOKS, k=torch.tensor(9.0))


def listed(folder: Path) -> Stored:
    """A configuration that lists the files of its layers."""
    stored = circuit_tracer(folder)
    config = f"{HOOKS}transcoders:\n- {stored.path}/layer_0.safetensors\n- transcoders/layer_1.safetensors\n"
    (folder / "config.yaml").write_text(config)
    stored.path, stored.hook, stored.output_hook = folder, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    return stored


def across_layers(folder: Path, written: Any = 2, threshold: bool = True) -> Stored:
    """A cross-layer transcoder of three layers, whose layer 1 is loaded."""
    path, n_layers = folder / "clt", 3
    for layer in range(n_layers):
        tensors = {
            f"W_enc_{layer}": numbers(N, D, seed=1 + 20 * layer),
            f"b_enc_{layer}": numbers(N, seed=2 + 20 * layer, scale=0.1),
            f"b_dec_{layer}": numbers(D, seed=4 + 20 * layer),
        }
        if threshold:
            tensors[f"threshold_{layer}"] = numbers(N, seed=5 + 20 * layer).abs()
        decoder = {f"W_dec_{layer}": numbers(N, n_layers - layer, D, seed=3 + 20 * layer)}
        write(path, tensors, f"W_enc_{layer}.safetensors")
        write(path, decoder, f"W_dec_{layer}.safetensors")
        if layer == 1:
            t = double(tensors | decoder)
    (path / "config.yaml").write_text(
        "model_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    layers = [written] if isinstance(written, int) else list(written)

    def codes(x: Array) -> Array:
        h = x @ t["W_enc_1"].T + t["b_enc_1"]
        return h * (h > t["threshold_1"]) if threshold else relu(h)

    def output(a: Array, x: Array) -> Array:
        return sum(a @ t["W_dec_1"][:, layer - 1, :] for layer in layers)

    options = {"layer": 1, "output_layer": written}
    last = max(layers)
    return Stored(path, codes, output, "blocks.1.hook_resid_mid", f"blocks.{last}.hook_mlp_out", 1, "raw", options)


def across_layers_summed(folder: Path) -> Stored:
    return across_layers(folder, range(1, 3))


def across_layers_relu(folder: Path) -> Stored:
    stored = across_layers(folder, 1, threshold=False)
    stored.path = stored.path / "W_enc_1.safetensors"
    del stored.options["layer"]
    return stored


LAYOUTS: dict[str, Callable[[Path], Stored]] = {
    function.__name__: function
    for function in (
        early_standard,
        flat_standard,
        late_flat_standard,
        nested_standard,
        nested_centred,
        of_transformers,
        flat_tanh,
        flat_topk,
        early_topk,
        nested_topk,
        rescaled_topk,
        jumprelu,
        flat_jumprelu,
        batchtopk,
        gated,
        layer_norm,
        gated_layer_norm,
        norm_rescale,
        average_norm,
        average_norm_flag,
        average_norm_checkpoint,
        finetuned,
        unused_factor,
        transcoder,
        skip_transcoder,
        jumprelu_transcoder,
        jumprelu_skip_transcoder,
        two_biases,
        gemma_scope,
        gemma_scope_lowercase,
        gemma_scope_transcoder,
        gemma_scope_embedding,
        gemma_scope_2,
        gemma_scope_2_without_config,
        sparsify,
        sparsify_seed,
        sparsify_old,
        sparsify_signed,
        sparsify_groupmax,
        sparsify_transcoder,
        sparsify_attention,
        per_layer,
        per_layer_old,
        per_layer_jumprelu,
        per_layer_low_threshold,
        per_layer_topk,
        per_layer_stored_k,
        listed,
        across_layers,
        across_layers_summed,
        across_layers_relu,
    )
}
