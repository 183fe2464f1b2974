"""Models in folders: a folder whose files do not fit its configuration is refused."""

import json
import os
import re
import shutil

import pytest
import torch
import zoo
from command_line import save_model
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.loading import load_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a tiny model of two layers."""
    return save_model(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(good, tmp_path / "model")


def configure(folder, **fields):
    """Change fields of a configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder, change):
    """Replace the weights of a folder by a function of them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def test_configurations_with_more_layers_than_the_file_are_refused(folder):
    configure(folder, n_layer=99)
    message = r"its files hold no transformer\.h\.2\.attn\.c_attn\.bias and 1,16\d more weights.*number of layers"
    with pytest.raises(EmbspaceError, match=message):
        load_model(folder)


@pytest.mark.parametrize("key", ["wpe", "h.1.mlp.c_proj.bias", "ln_f.weight"])
def test_files_that_lack_one_weight_are_refused(folder, key):
    change_weights(folder, lambda tensors: {name: t for name, t in tensors.items() if key not in name})
    with pytest.raises(EmbspaceError, match=f"its files hold no .*{key}.*, which its configuration needs"):
        load_model(folder)


def test_unused_weights_warn(folder):
    configure(folder, n_layer=1)
    with pytest.warns(UserWarning, match=r"holds 1\d weights that the model does not use, such as transformer\.h\.1\."):
        model = load_model(folder)
    assert EmbeddingLens(model).weights.n_layers == 1


def test_vocabulary_sizes_that_disagree_are_refused(folder):
    configure(folder, vocab_size=299)
    message = r"transformer\.wte\.weight has shape \(300, 32\) in its file and \(299, 32\) by its configuration"
    with pytest.raises(EmbspaceError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_head": 0},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["BertForMaskedLM"]},
        {"model_type": "nonsense"},
        {"vocab_size": -1},
    ],
)
def test_wrong_configurations_are_refused(folder, fields):
    configure(folder, **fields)
    with pytest.raises(EmbspaceError, match=r"model could not be loaded \(\w+: .*\)\. Is a file damaged .*"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": "x"}, "n_embd in config.json is 'x', which is not an integer."),
        ({"n_layer": None}, "n_layer in config.json is null, which is not an integer."),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon in config.json is null, which is not a number."),
        ({"model_type": None}, "model_type in config.json is null, which is not a string."),
        ({"dtype": "nonsense"}, "dtype in config.json is 'nonsense', which is not the name of a dtype, such as 'float32'."),
        ({"dtype": 3}, "dtype in config.json is 3, which is not the name of a dtype, such as 'float32'."),
        ({"torch_dtype": "nn"}, "torch_dtype in config.json is 'nn', which is not the name of a dtype, such as 'float32'."),
    ],
)  # fmt: skip
def test_wrong_fields_of_a_configuration_are_named(folder, fields, message):
    configure(folder, **fields)
    with pytest.raises(EmbspaceError, match=re.escape(f"{folder} could not be loaded: {message}") + "$"):
        load_model(folder)


@pytest.mark.parametrize("architectures", [["NonsenseForCausalLM"], ["GPT2LMHeadModel", "Nonsense"], [3], "Nonsense"])
def test_unknown_architectures_are_refused(folder, architectures):
    configure(folder, architectures=architectures)
    name = architectures if isinstance(architectures, str) else architectures[-1]
    message = f"its configuration names the architecture {name!r}, which neither transformers nor TransformerLens has."
    with pytest.raises(EmbspaceError, match=re.escape(f"{folder} could not be loaded: {message}") + "$"):
        load_model(folder)


@pytest.mark.parametrize("architectures", [None, [], ["GPT2LMHeadModel"], ["GPT2Model"], ["GPT2LMHeadCustomModel"]])
def test_known_architectures_and_none_are_accepted(folder, architectures):
    """The last one is a name of TransformerLens, and no class of transformers."""
    configure(folder, architectures=architectures)
    assert type(load_model(folder).original_model).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "model could not be loaded: its config.json is null, which is not a JSON object."),
        ("[]", "model could not be loaded: its config.json is [], which is not a JSON object."),
        ("3", "model could not be loaded: its config.json is 3, which is not a JSON object."),
        ("", "config.json cannot be read: "),
        ("[" * 100_000 + "]" * 100_000, "config.json cannot be read: its lists are nested too deeply."),
    ],
)
def test_configurations_that_are_no_object_are_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(EmbspaceError, match=re.escape(message)):
        load_model(folder)


def test_negative_token_ids_are_refused(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"][next(iter(tokenizer["model"]["vocab"]))] = -5
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(EmbspaceError, match=r"could not be loaded \(.*-5.*\)"):
        load_model(folder)


def test_weights_that_could_run_code_are_refused(folder, tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(
        EmbspaceError, match=r"stored as Python objects, which may run code.* Save the model as safetensors"
    ):
        load_model(folder)


def test_files_and_unknown_homes_are_refused(folder):
    with pytest.raises(EmbspaceError, match=r"config\.json is a file\. Give the folder that holds"):
        load_model(folder / "config.json")
    with pytest.raises(EmbspaceError, match=r"~nobody-at-all names the home folder of a user who does not exist"):
        load_model("~nobody-at-all")


def test_devices_that_do_not_exist_are_refused(good):
    with pytest.raises(EmbspaceError, match=r"device='nowhere' cannot be used"):
        load_model(good, device="nowhere")


@pytest.mark.parametrize("name", sorted(set(zoo.ZOO) - set(zoo.UNAVAILABLE)))
def test_checkpoints_are_loaded_only_if_complete(name, tmp_path):
    """A saved model of every architecture is loaded; without any one weight of its last block, it is refused."""
    hf_model = zoo.ZOO[name]()
    expected = hf_model.get_input_embeddings().weight.clone()
    hf_model.save_pretrained(tmp_path / "model")
    zoo.tokenizer().save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(model.original_model.get_input_embeddings().weight, expected)
    last_block = [key for key in load_file(tmp_path / "model" / "model.safetensors") if ".1." in key]
    removed = last_block[int(torch.randint(len(last_block), ()))]
    change_weights(tmp_path / "model", lambda tensors: {key: t for key, t in tensors.items() if key != removed})
    with pytest.raises(EmbspaceError, match="model could not be loaded"):
        load_model(tmp_path / "model", device="cpu")


def test_the_host_cannot_install_packages_while_it_boots(good, monkeypatch):
    """It runs pip install torchvision for models with images, which replaces torch by another build."""
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.delenv("PIP_NO_INDEX")
    seen, host_boot = [], TransformerBridge.boot_transformers

    def boot_transformers(*args, **kwargs):
        seen.append((os.environ.get("PIP_NO_INDEX"), os.environ.get("UV_OFFLINE")))
        return host_boot(*args, **kwargs)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot_transformers)
    for offload in (False, True):
        load_model(good, offload=offload)
    assert seen == [("1", "1")] * 2
    assert "PIP_NO_INDEX" not in os.environ
