"""Models whose weights stay in their checkpoint: every table is that of the model in memory."""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import zoo
from range_server import serving
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, demo
from embspace_lens.checkpoints.lazy_tensor import LazyTensor
from embspace_lens.checkpoints.local_files import LocalFiles
from embspace_lens.errors import EmbspaceError

NAMES = [name for name in zoo.ZOO if name not in zoo.UNAVAILABLE]


def save(name: str, folder: Path, **options: Any) -> Path:
    """A tiny model of the zoo as a checkpoint of several files, with its tokenizer."""
    zoo.ZOO[name]().save_pretrained(folder, **{"max_shard_size": "40KB"} | options)
    zoo.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoints by architecture, each saved once."""
    saved: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in saved:
            saved[name] = save(name, tmp_path_factory.mktemp(name))
        return saved[name]

    return get


def outcome(read: Any) -> pd.DataFrame | str:
    """A table, or the message of the error in its place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search says which weights it leaves out
            return read()
    except EmbspaceError as reason:
        return str(reason)


READINGS = {
    "neurons": lambda lens: lens.neurons(k=2),
    "subheads": lambda lens: lens.subheads(k=2),
    "ov": lambda lens: lens.ov(k=2),
    "qk": lambda lens: lens.qk(k=2),
    "qk at a distance": lambda lens: lens.qk(k=2, distance=3),
    "singular": lambda lens: lens.singular(k=2, n_directions=2),
    "search": lambda lens: lens.search(5, k=3),
    "components": lambda lens: lens.components(),
}


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_those_of_the_model_in_memory_bit_for_bit(checkpoint, name):
    in_memory = outcome(lambda: EmbeddingLens.from_pretrained(checkpoint(name), offload=False))
    offloaded = outcome(lambda: EmbeddingLens.from_pretrained(checkpoint(name), offload=True))
    if isinstance(in_memory, str):
        assert offloaded == in_memory
        return
    for reading, read in READINGS.items():
        expected, actual = (outcome(partial(read, lens)) for lens in (in_memory, offloaded))
        if isinstance(expected, str):
            assert actual == expected, reading
        else:
            pd.testing.assert_frame_equal(actual, expected, check_exact=True, obj=reading)
    loaded = [parameter for parameter in offloaded.model.parameters() if not isinstance(parameter, LazyTensor)]
    assert not any(parameter.any() for parameter in loaded), (
        "only zeros, which TransformerLens 3.9 adds for missing biases"
    )


def stored_bytes(folder: Path, *parts: str) -> int:
    """The bytes of the parameters whose names contain one of the parts."""
    tensors = [item for file in folder.glob("*.safetensors") for item in load_file(file).items()]
    return sum(x.nbytes for name, x in tensors if any(part in name for part in parts))


def header_bytes(folder: Path) -> int:
    sizes = [int.from_bytes(file.read_bytes()[:8], "little") + 8 for file in folder.glob("*.safetensors")]
    return sum(sizes)


def test_only_what_a_reading_needs_is_read(checkpoint):
    folder = checkpoint("llama")
    lens = EmbeddingLens.from_pretrained(folder, offload=True)
    outside = header_bytes(folder) + stored_bytes(folder, "embed_tokens", "lm_head")
    assert lens.weights.bytes_read == outside
    lens.neurons(layer=1, weight="W_in", k=1)
    norms = stored_bytes(folder, "layers.1.post_attention_layernorm", "model.norm")
    assert lens.weights.bytes_read <= outside + norms + stored_bytes(folder, "layers.1.mlp.up_proj")
    lens.ov(layer=0, k=1)
    norms += stored_bytes(folder, "layers.0.input_layernorm")
    read = stored_bytes(folder, "layers.1.mlp.up_proj", "layers.0.self_attn.v_proj", "layers.0.self_attn.o_proj")
    assert lens.weights.bytes_read == outside + norms + read
    lens.ov(layer=0, k=1)
    assert lens.weights.bytes_read == outside + norms + read, "bytes are counted once"


@pytest.mark.parametrize("name", ["mixtral", "llama4_text"])
def test_one_expert_is_read_alone(checkpoint, name):
    folder = checkpoint(name)
    lens = EmbeddingLens.from_pretrained(folder, offload=True)
    layer = next(layer for layer in range(zoo.N_LAYERS) if len(lens.weights.experts(layer)) > 1)
    n_experts = len([expert for expert in lens.weights.experts(layer) if expert >= 0])
    before = lens.weights.bytes_read
    lens.neurons(layer=layer, expert=1, k=1)
    of_experts = stored_bytes(
        folder, *(f"layers.{layer}.{part}.experts" for part in ("mlp", "block_sparse_moe", "feed_forward"))
    )
    norms = stored_bytes(folder, "norm")
    assert 0 < lens.weights.bytes_read - before <= of_experts / n_experts + norms


def test_neurons_of_an_expert_are_those_of_all_experts(checkpoint):
    lens = EmbeddingLens.from_pretrained(checkpoint("mixtral"), offload=True)
    everything = lens.neurons(layer=0, k=2)
    one = lens.neurons(layer=0, expert=2, k=2)
    pd.testing.assert_frame_equal(one, everything[everything["expert"] == 2].reset_index(drop=True))


def test_a_bfloat16_checkpoint_is_read_in_its_own_precision(tmp_path):
    folder = tmp_path / "model"
    zoo.ZOO["llama"]().to(torch.bfloat16).save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    lens = EmbeddingLens.from_pretrained(folder, offload=True)
    assert lens.weights.stored("W_in", 0).dtype == torch.bfloat16
    expected = EmbeddingLens.from_pretrained(folder, offload=False)
    for name in ("W_Q", "W_in", "W_out", "W_O"):
        assert getattr(lens.weights, name)(0).equal(getattr(expected.weights, name)(0)), name
    assert lens.components()["dtype"].eq("bfloat16").all()


def forward_functions(lens: EmbeddingLens) -> dict[str, Any]:
    from embspace_lens import forward, interventions

    texts = ["a b c d"]
    rows = lens.neurons(layer=0, neuron=[0], k=1)
    return {
        "model": lambda: lens.model(torch.tensor([[1, 2, 3]])),
        "run_with_cache": lambda: lens.model.run_with_cache(torch.tensor([[1, 2, 3]])),
        "compatibility mode": lambda: lens.model.enable_compatibility_mode(),
        "hidden_states": lambda: list(forward.hidden_states(lens.model, texts)),
        "sample_texts": lambda: forward.sample_texts(lens.model, n=1, n_tokens=2),
        "activations": lambda: interventions.activations(lens.model, texts, rows),
    }


def test_functions_that_run_the_model_raise_one_sentence(checkpoint):
    lens = EmbeddingLens.from_pretrained(checkpoint("gpt2"), offload=True)
    for run in forward_functions(lens).values():
        with pytest.raises(EmbspaceError, match=r"offload=False"):
            run()


def test_first_mlp_and_relations_are_those_of_the_model_in_memory(checkpoint):
    from embspace_lens.weights.final_norm import apply_final_norm
    from embspace_lens.weights.first_mlp import first_mlp_output

    for name in ("gpt2", "mixtral", "gemma2"):
        a, b = (EmbeddingLens.from_pretrained(checkpoint(name), offload=offload) for offload in (True, False))
        x = b.weights.W_E[:7].float()
        assert first_mlp_output(a.weights, x).equal(first_mlp_output(b.weights, x))
        assert apply_final_norm(a.weights, x).equal(apply_final_norm(b.weights, x))
        loaded = [parameter for parameter in a.model.parameters() if not isinstance(parameter, LazyTensor)]
        assert not any(parameter.any() for parameter in loaded)


def test_models_that_would_fill_the_memory_stay_in_their_checkpoint(checkpoint, monkeypatch):
    folder = checkpoint("llama")
    assert not EmbeddingLens.from_pretrained(folder).weights.is_offloaded
    n_bytes = stored_bytes(folder, "")
    free = type("Memory", (), {"available": int(n_bytes / 0.59)})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not EmbeddingLens.from_pretrained(folder).weights.is_offloaded
    free.available = int(n_bytes / 0.61)
    with pytest.warns(UserWarning, match="stay on disk"):
        assert EmbeddingLens.from_pretrained(folder).weights.is_offloaded
    assert not EmbeddingLens.from_pretrained(folder, offload=False).weights.is_offloaded


def test_demo_models_can_stay_in_their_file():
    lens = EmbeddingLens.from_pretrained("reviews-small-0", offload=True)
    expected = EmbeddingLens(demo.load("reviews-small-0"))
    pd.testing.assert_frame_equal(lens.neurons(layer=2, k=3), expected.neurons(layer=2, k=3))
    with pytest.raises(EmbspaceError, match="difference"):
        EmbeddingLens.from_pretrained("reviews-small-0-sentiment", offload=True)


# -- bad input


def remove_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def remove_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def truncate(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].write_bytes(b"")


def corrupt_header(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def wrong_json(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(file.read_bytes())
    content[8:12] = b"[[[["
    file.write_bytes(content)


def wrong_place(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    content = file.read_bytes()
    start = content.index(b'"data_offsets":[') + len(b'"data_offsets":[')
    file.write_bytes(content[:start] + b"9" + content[start + 1 :])


def damaged_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def index_elsewhere(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../etc/passwd")
    file.write_text(json.dumps(index))


def only_pickles(folder: Path) -> None:
    remove_index(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_shape(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, file, metadata={"format": "pt"})


def missing_weight(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file, metadata={"format": "pt"})


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"], config["model_type"] = ["NobodysForCausalLM"], "nobodys"
    (folder / "config.json").write_text(json.dumps(config))


BAD = {
    remove_index: r"model\.safetensors\.index\.json",
    remove_shard: r"not complete: one of \d+ files of weights is missing",
    truncate: "truncated or damaged",
    empty: "truncated or damaged: it has 0 bytes",
    corrupt_header: "truncated or damaged",
    wrong_json: "truncated or damaged",
    wrong_place: "truncated or damaged",
    damaged_index: "truncated or damaged",
    index_elsewhere: "truncated or damaged",
    only_pickles: "safetensors",
    other_shape: "shape",
    missing_weight: "hold no",
    unknown_architecture: "could not be loaded",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_damaged_checkpoints_are_refused_in_one_sentence(checkpoint, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), folder)
    damage(folder)
    with pytest.raises(EmbspaceError, match=BAD[damage]) as caught:
        EmbeddingLens.from_pretrained(folder, offload=True)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


# -- addresses, and the command line


def test_a_model_at_an_address_is_read_like_that_in_a_folder(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("EMBSPACE_LENS_CACHE", str(tmp_path))
    folder = checkpoint("llama")
    with serving(folder) as server:
        lens = EmbeddingLens.from_pretrained(server.url, offload="auto")
        assert lens.weights.is_offloaded
        expected = EmbeddingLens.from_pretrained(folder, offload=False)
        pd.testing.assert_frame_equal(lens.neurons(layer=1, k=2), expected.neurons(layer=1, k=2))
        fetched = server.n_bytes
        assert lens.weights.bytes_read == fetched
        again = EmbeddingLens.from_pretrained(server.url)
        pd.testing.assert_frame_equal(again.neurons(layer=1, k=2), expected.neurons(layer=1, k=2))
        assert again.weights.bytes_read == 0, "what was fetched is on disk"
        with pytest.raises(EmbspaceError, match="Download the folder"):
            EmbeddingLens.from_pretrained(server.url, offload=False)


def test_hub_names_without_an_organisation_are_refused():
    with pytest.raises(EmbspaceError, match="organisation/model"):
        EmbeddingLens.from_pretrained("gpt2", offload=True)


# -- two checkpoints


def test_differences_of_checkpoints_are_those_of_models_in_memory(checkpoint, tmp_path):
    from embspace_lens import difference

    folder = tmp_path / "tuned"
    shutil.copytree(checkpoint("llama"), folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        changed = {name: x + 0.01 if "mlp" in name else x for name, x in tensors.items()}
        save_file(changed, file, metadata={"format": "pt"})
    lenses = {}
    for offload in (True, False):
        before, after = (EmbeddingLens.from_pretrained(path, offload=offload) for path in (checkpoint("llama"), folder))
        lenses[offload] = difference(after, before), after, before
    for read in (
        lambda change, after, before: change.neurons(k=2),
        lambda change, after, before: change.components(),
        lambda change, after, before: before.read(after.search(5, weight="W_out")),
    ):
        pd.testing.assert_frame_equal(read(*lenses[True]), read(*lenses[False]), check_exact=True)
    assert lenses[True][0].weights.is_offloaded and "unchanged" not in repr(lenses[True][0])


def test_alignments_of_checkpoints_are_those_of_models_in_memory():
    from embspace_lens import align, match_neurons

    def compared(offload):
        a, b = (EmbeddingLens.from_pretrained(f"reviews-small-{seed}", offload=offload) for seed in (0, 1))
        return align(a, b, weights="W_O").matches, match_neurons(a, b, 0, 0)

    for actual, expected in zip(compared(True), compared(False)):
        pd.testing.assert_frame_equal(actual, expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral"])
def test_circuits_and_evidence_are_those_of_the_model_in_memory(checkpoint, name):
    from embspace_lens import circuits, evidence

    a, b = (EmbeddingLens.from_pretrained(checkpoint(name), offload=offload) for offload in (True, False))
    pairs = ["W_V-W_O"] if name == "mixtral" else ["W_in-W_out", "W_V-W_O"]
    functions = {
        "head_statistics": lambda lens: circuits.head_statistics(lens),
        "neuron_statistics": lambda lens: circuits.neuron_statistics(lens),
        "related_pairs": lambda lens: evidence.related_pairs(lens, k=5, pairs=pairs, seeds=1),
        "salient_operations": lambda lens: circuits.salient_operations(lens, layer=0, k=2),
        "position_heads": lambda lens: circuits.position_heads(lens),
        "relation_scores": lambda lens: circuits.relation_scores(
            lens, {"next": [(i, i + 1) for i in range(9)]}, n_shuffles=9
        ),
        "vocabulary_channels": lambda lens: circuits.vocabulary_channels(lens, 0, [0, 1], n_channels=2).channels,
    }
    for function, run in functions.items():
        actual, expected = outcome(partial(run, a)), outcome(partial(run, b))
        if isinstance(expected, str):
            assert actual == expected, function
        else:
            pd.testing.assert_frame_equal(actual, expected, check_exact=True, obj=function)


# -- models of the hub, which were downloaded


@pytest.fixture
def downloaded(checkpoint, tmp_path, monkeypatch):
    """A model in the cache of the hub: a snapshot of links to blobs. The hub may not be asked."""
    from huggingface_hub import constants

    repository = tmp_path / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    for file in checkpoint("llama").iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_downloaded_hub_models_are_read_from_their_snapshot(downloaded, checkpoint, monkeypatch):
    expected = EmbeddingLens.from_pretrained(checkpoint("llama"), offload=False).neurons(k=2)
    lens = EmbeddingLens.from_pretrained("org/tiny", offload=True)
    assert lens.name == "org/tiny"
    pd.testing.assert_frame_equal(lens.neurons(k=2), expected)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.warns(UserWarning, match="stay on disk"):
        assert EmbeddingLens.from_pretrained("org/tiny").weights.is_offloaded


def test_incomplete_downloads_are_left_to_transformers(downloaded):
    sorted(downloaded.glob("*.safetensors"))[0].unlink()
    with pytest.raises(EmbspaceError, match="offline mode is on"):
        EmbeddingLens.from_pretrained("org/tiny", offload=True)
    with pytest.raises(EmbspaceError) as caught:
        EmbeddingLens.from_pretrained("org/tiny")
    assert "is not complete" not in str(caught.value)


def test_quantised_hub_models_are_not_loaded(downloaded):
    config = json.loads((downloaded / "config.json").read_text())
    (downloaded / "config.json").unlink()
    (downloaded / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(EmbspaceError, match="GPTQ .*are not read.* GGUF"):
        EmbeddingLens.from_pretrained("org/tiny")


# -- unusual folders


def test_a_single_file_precedes_an_index_as_in_memory(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    tensors = {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}
    save_file({name: 2 * x for name, x in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    a, b = (EmbeddingLens.from_pretrained(folder, offload=offload) for offload in (True, False))
    assert a.weights.W_E.equal(b.weights.W_E)


def test_files_larger_than_the_memory_are_mapped(tmp_path):
    size = 2 * psutil.virtual_memory().total
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    files = LocalFiles(tmp_path)
    assert files.read("large", size - 8, size).tolist() == [0] * 8 and files.bytes_read == 8


def test_values_are_returned_on_the_device_that_is_asked_for():
    lens = EmbeddingLens.from_pretrained("reviews-small-0", offload=True)
    for parameter in lens.model.parameters():
        parameter.place = torch.device("meta")
    weights = lens.weights.host
    assert weights.attention(weights.blocks[0], "W_Q").read().device.type == "meta"
    assert weights.mlp(weights.blocks[0], "W_in").read().device.type == "meta"


def test_double_precision_is_that_of_the_model_in_memory(checkpoint):
    a, b = (
        EmbeddingLens.from_pretrained(checkpoint("llama"), offload=offload, dtype=torch.float64)
        for offload in (True, False)
    )
    assert a.weights.W_in(0).dtype == torch.float64
    pd.testing.assert_frame_equal(a.neurons(k=2), b.neurons(k=2), check_exact=True)


def test_tied_embeddings_are_kept_once(tmp_path):
    lens = EmbeddingLens.from_pretrained(save("gpt2", tmp_path / "model"), offload=True)
    assert lens.weights.unembedding[0].data_ptr() == lens.weights.W_E.data_ptr()


def test_adapters_and_unknown_types_are_named(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EmbspaceError, match="adapter"):
        EmbeddingLens.from_pretrained(folder, offload=True)
    (folder / "adapter_config.json").unlink()
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"F4"', 1).replace(b"}}", b"} }", 1))
    with pytest.raises(EmbspaceError, match="of type F4, which is not read"):
        EmbeddingLens.from_pretrained(folder, offload=True)
