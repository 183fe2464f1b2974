"""The configuration and the tokenizer of a checkpoint are copied; code and weights are not."""

import json

import pytest
import zoo
from range_server import serving
from transformers import AutoConfig, AutoTokenizer

from embspace_lens import EmbspaceError
from embspace_lens.checkpoints.local_files import LocalFiles
from embspace_lens.checkpoints.remote_files import RemoteFiles
from embspace_lens.checkpoints.small_files import fetch_small_files


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    zoo.ZOO["llama"]().save_pretrained(path)
    zoo.tokenizer().save_pretrained(path)
    for name in ("modeling_llama.py", "pytorch_model.bin", "training_args.bin"):
        (path / name).write_bytes(b"0")
    return path


def test_transformers_reads_the_copies(folder, tmp_path):
    with serving(folder) as server:
        copies = fetch_small_files(RemoteFiles(server.url), tmp_path / "small")
    assert (
        AutoConfig.from_pretrained(copies).to_dict().items() >= json.loads((folder / "config.json").read_text()).items()
    )
    assert AutoTokenizer.from_pretrained(copies)("a b").input_ids == zoo.tokenizer()("a b").input_ids


def test_copies_are_equal_and_neither_code_nor_weights(folder, tmp_path):
    copies = fetch_small_files(LocalFiles(folder), tmp_path / "small")
    names = {path.name for path in copies.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".py", ".bin", ".safetensors")) for name in names)
    assert all((copies / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_configuration_is_needed(folder, tmp_path):
    (folder / "config.json").unlink()
    with serving(folder) as server, pytest.raises(EmbspaceError) as raised:
        fetch_small_files(RemoteFiles(server.url), tmp_path / "small")
    assert str(raised.value) == (
        f"{server.url} holds no config.json, or it may not be read. Check the address and, for private files, the login."
    )
    assert not (tmp_path / "small").exists()
