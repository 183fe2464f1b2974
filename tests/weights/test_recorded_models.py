"""Recorded models: every table from a record is that of the loaded model, and what is not recorded comes from the model."""

import json
import os
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
from safetensors.torch import load_file, save_file

from embspace_lens import EmbeddingLens, demo
from embspace_lens.checkpoints import record_files
from embspace_lens.checkpoints.lazy_tensor import LazyTensor
from embspace_lens.compare.differences import difference
from embspace_lens.errors import EmbspaceError
from embspace_lens.loading import load_model, open_model
from embspace_lens.weights import recorded_models
from embspace_lens.weights.recorded_host import RecordedHost

NAMES = [name for name in zoo.ZOO if name not in zoo.UNAVAILABLE]
READINGS = {
    "neurons": lambda lens: lens.neurons(k=2),
    "subheads": lambda lens: lens.subheads(k=2),
    "ov": lambda lens: lens.ov(layer=1, k=2),
    "qk": lambda lens: lens.qk(layer=1, k=2),
    "singular": lambda lens: lens.singular(layer=1, k=2, n_directions=2),
    "singular W_QK": lambda lens: lens.singular(layer=1, k=2, n_directions=2, weight="W_QK"),
    "search": lambda lens: lens.search(5, k=3),
    "components": lambda lens: lens.components(),
    "directions": lambda lens: lens.directions(torch.eye(3, lens.weights.d_model), side="read", k=2),
}


@pytest.fixture(autouse=True)
def records(tmp_path, monkeypatch) -> Path:
    """An empty folder of records."""
    monkeypatch.setenv("EMBSPACE_LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "records"


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    zoo.ZOO[name]().to(dtype).save_pretrained(folder, max_shard_size="40KB")
    zoo.tokenizer().save_pretrained(folder)
    return folder


class Opener:
    """Opens a model as a command does, and counts the boots."""

    def __init__(self, name: Any, offload: Any = "auto", cache: bool = True, device: str | None = "cpu") -> None:
        self.name, self.options = str(name), {"offload": offload, "cache": cache, "device": device}
        self.boots: list[Any] = []

    def load(self, **options: Any) -> Any:
        self.boots.append(options.get("offload", self.options["offload"]))
        return load_model(self.name, **self.options | options)

    def open(self, **options: Any) -> EmbeddingLens:
        return EmbeddingLens(open_model(self.name, self.load, **self.options), **options)

    def twice(self, **options: Any) -> EmbeddingLens:
        """A lens from a record."""
        self.open()
        self.boots.clear()
        return self.open(**options)


def outcome(read: Any) -> pd.DataFrame | str:
    """A table, or the message of the error in its place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search says which weights it leaves out
            return read()
    except EmbspaceError as reason:
        return str(reason)


def check_tables(actual: EmbeddingLens, expected: EmbeddingLens, readings: Any = READINGS) -> None:
    """Check that two lenses give the same tables and errors."""
    for reading in readings:
        a, b = (outcome(partial(READINGS[reading], lens)) for lens in (actual, expected))
        if isinstance(b, str):
            assert a == b, reading
        else:
            pd.testing.assert_frame_equal(a, b, check_exact=True, obj=reading)


@pytest.mark.parametrize("name", NAMES)
def test_tables_from_a_record_are_those_of_the_loaded_model_bit_for_bit(name, tmp_path):
    folder = save(name, tmp_path / name)
    expected = outcome(lambda: EmbeddingLens.from_pretrained(folder))
    actual = outcome(Opener(folder).twice)
    if isinstance(expected, str):
        assert actual == expected
        return
    assert isinstance(actual.weights.host, RecordedHost)
    check_tables(actual, expected)


@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
@pytest.mark.parametrize("options", [{}, {"vocabulary": "frequent", "score": "cosine"}, {"fold_ln": False}])
def test_demo_models_are_read_without_a_boot(options):
    opener = Opener("reviews-small-0")
    actual = opener.twice(**options)
    expected = EmbeddingLens(demo.load("reviews-small-0"), **options)
    check_tables(actual, expected, READINGS if not options else ["search", "components"])
    assert opener.boots == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral"])
def test_weights_of_common_architectures_are_read_without_a_boot(name, tmp_path):
    opener = Opener(save(name, tmp_path / name))
    opener.open()
    assert opener.boots == [True], "the first command boots once"
    lens = opener.twice()
    for read in READINGS.values():
        outcome(partial(read, lens))
    assert opener.boots == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)])
def test_narrow_checkpoints_are_read_as_a_loaded_model_holds_them(dtype, tmp_path):
    folder = save("llama", tmp_path / "llama", dtype)
    check_tables(Opener(folder).twice(), EmbeddingLens.from_pretrained(folder, offload=False))
    offloaded = Opener(folder, offload=True).twice()
    assert offloaded.weights.is_offloaded and offloaded.weights.stored("W_in", 0).dtype == dtype
    check_tables(offloaded, EmbeddingLens.from_pretrained(folder, offload=True))


def test_what_is_not_recorded_comes_from_the_model(tmp_path):
    opener = Opener(save("qwen3", tmp_path / "qwen3"))
    lens, expected = opener.twice(), EmbeddingLens.from_pretrained(opener.name)
    check_tables(lens, expected, ["neurons", "ov"])
    assert opener.boots == []
    check_tables(lens, expected, ["qk"])  # with norms of queries and keys
    assert opener.boots == ["auto"]
    assert lens.model(torch.tensor([[1, 2, 3]])).equal(expected.model(torch.tensor([[1, 2, 3]])))
    assert lens.vocabulary.tokenizer.encode("a b") == expected.model.tokenizer.encode("a b")
    assert opener.boots == ["auto"], "it is booted once"


def test_functions_that_need_modules_of_the_model_boot_it(tmp_path):
    from embspace_lens.circuits.operations import salient_operations
    from embspace_lens.weights.hook_points import head_hook

    opener = Opener(save("gpt2", tmp_path / "gpt2"))
    lens, expected = opener.twice(), EmbeddingLens.from_pretrained(opener.name)
    pd.testing.assert_frame_equal(salient_operations(lens, n=3, k=2), salient_operations(expected, n=3, k=2))
    assert head_hook(lens.weights, 0) == head_hook(expected.weights, 0)
    assert opener.boots == ["auto"]


def test_errors_are_those_of_the_loaded_model(tmp_path):
    opener = Opener(save("gpt2", tmp_path / "gpt2"))
    lens, expected = opener.twice(), EmbeddingLens.from_pretrained(opener.name)
    for read in (
        lambda lens: lens.neurons(layer=9),
        lambda lens: lens.neurons(weight="W_gate"),
        lambda lens: lens.qk(distance=1),
        lambda lens: lens.search("no token of this vocabulary"),
    ):
        assert outcome(partial(read, lens)) == outcome(partial(read, expected))


def test_differences_of_recorded_models_are_those_of_loaded_models(tmp_path):
    folders = [save("llama", tmp_path / name) for name in ("after", "before")]
    path = next(folders[0].glob("*.safetensors"))
    save_file({name: x * 1.5 for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
    openers = [Opener(folder) for folder in folders]
    actual = difference(*(opener.twice() for opener in openers))
    check_tables(actual, difference(*(EmbeddingLens.from_pretrained(folder) for folder in folders)), ["neurons", "ov"])
    assert not any(opener.boots for opener in openers)


# -- When a record is made and used


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


def change_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["renamed"] = vocabulary.pop(max(vocabulary, key=vocabulary.__getitem__))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        save_file({name: x + 1 for name, x in load_file(path).items()}, path, metadata={"format": "pt"})
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [change_config, change_tokenizer, change_weights])
def test_changed_files_make_a_new_record(change, tmp_path):
    opener = Opener(save("llama", tmp_path / "llama"))
    opener.twice()
    change(Path(opener.name))
    lens = opener.open()
    assert opener.boots == [True]
    check_tables(lens, EmbeddingLens.from_pretrained(opener.name), ["neurons", "components"])


def test_values_of_weights_are_read_from_the_files_each_time(tmp_path):
    opener = Opener(save("llama", tmp_path / "llama"))
    lens = opener.twice()
    before = lens.weights.W_in(0)
    for path in Path(opener.name).glob("*.safetensors"):  # the size and the time of the change are as before
        status, tensors = path.stat(), load_file(path)
        path.unlink()
        save_file({name: x * 2 for name, x in tensors.items()}, path, metadata={"format": "pt"})
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert opener.open().weights.fold_ln and not opener.boots
    assert (
        opener.open(fold_ln=False)
        .weights.W_in(0)
        .equal(EmbeddingLens.from_pretrained(opener.name, fold_ln=False).weights.W_in(0))
    )
    assert not before.equal(opener.open().weights.W_in(0))


@pytest.mark.parametrize("package", ["torch", "transformers", "transformer-lens", "tokenizers"])
def test_other_versions_make_a_new_record(package, tmp_path, monkeypatch):
    opener = Opener(save("llama", tmp_path / "llama"))
    opener.twice()
    installed = recorded_models.version
    monkeypatch.setattr(recorded_models, "version", lambda name: "99" if name == package else installed(name))
    opener.open()
    assert opener.boots == [True]
    monkeypatch.setattr(recorded_models, "version", lambda name: "99.dev0" if name == package else installed(name))
    opener.twice()
    assert opener.boots == ["auto"], "development versions are not recorded"


@pytest.mark.parametrize("options", [{"offload": False}, {"cache": False}, {"device": "meta"}])
def test_no_record_is_made_or_used_if_an_option_rules_it_out(options, tmp_path, records):
    Opener(save("llama", tmp_path / "llama")).open()
    assert len(list(records.iterdir())) == 1
    shutil.rmtree(records)
    opener = Opener(tmp_path / "llama", **options)
    try:
        opener.open()
    except EmbspaceError:
        assert options == {"device": "meta"}
    assert not records.exists() and opener.boots == [options.get("offload", "auto")]


@pytest.mark.parametrize("kind", ["adapter", "no config", "no weights", "quantised", "classifier"])
def test_other_folders_are_not_recorded(kind, tmp_path, records):
    folder = save("llama", tmp_path / "llama")
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    elif kind == "classifier":
        (folder / "difference.json").write_text("{}")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "unknown"}}))
    opener = Opener(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(opener.open) == outcome(lambda: EmbeddingLens.from_pretrained(folder)) or kind == "adapter"
    assert not records.exists() and opener.boots == ["auto"]


def test_models_that_cannot_be_recorded_are_loaded_and_booted_once_afterwards(tmp_path, monkeypatch):
    folder = save("llama", tmp_path / "llama")
    monkeypatch.setattr("embspace_lens.weights.model_record.MAX_WEIGHTS", 3)
    opener = Opener(folder)
    lens = opener.open()
    assert opener.boots == [True, "auto"] and not isinstance(lens.weights.host, RecordedHost)
    opener.boots.clear()
    opener.open()
    assert opener.boots == ["auto"]


def rewrite(records: Path, change: Any) -> None:
    """Change a record, with the right digest."""
    (path,) = records.iterdir()
    record = record_files.read_record(path.name)
    change(record)
    record_files.write_record(path.name, record)


def first_weight(record: dict[str, Any], name: str = "W_in/-1") -> dict[str, Any]:
    return record["host"]["blocks"][0]["weights"][name]


HOSTILE = {
    "unknown operation": lambda record: first_weight(record).update(operation="from_file", args=["/etc/passwd"]),
    "other file": lambda record: record["host"]["outer"].update(
        W_E={"stored": "../x", "entry": [], "dtype": "float32"}
    ),
    "entry outside": lambda record: first_weight(record).update(stored="lm_head.weight", entry=[10**6]),
    "no blocks": lambda record: record["host"].pop("blocks"),
    "norm of another type": lambda record: record["host"].update(final_norm=[]),
    "no facts": lambda record: record["host"].update(facts=None),
    "not a record": lambda record: record.clear(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_records_change_no_table(kind, tmp_path, records):
    opener = Opener(save("llama", tmp_path / "llama"))
    opener.open()
    rewrite(records, HOSTILE[kind])
    check_tables(opener.open(), EmbeddingLens.from_pretrained(opener.name), ["neurons", "components"])
    assert len(opener.boots) > 1, "the record is not used"


def test_damaged_records_are_written_anew(tmp_path, records):
    opener = Opener(save("llama", tmp_path / "llama"))
    opener.open()
    (path,) = records.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    check_tables(opener.open(), EmbeddingLens.from_pretrained(opener.name), ["neurons"])
    assert path.read_bytes() == content


def test_warnings_of_the_boot_are_part_of_the_record(tmp_path):
    folder = save("llama", tmp_path / "llama")
    path = next(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    save_file(load_file(path) | {"unused": torch.zeros(3)}, path, metadata={"format": "pt"})
    index["weight_map"]["unused"] = path.name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    opener = Opener(folder)
    for n_boots in (1, 1):
        with pytest.warns(UserWarning, match="holds 1 weights that the model does not use, such as unused"):
            lens = opener.open()
        assert len(opener.boots) == n_boots
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lens.model is not None, "they are issued once"


def test_large_models_stay_in_their_checkpoint(tmp_path, monkeypatch):
    opener = Opener(save("llama", tmp_path / "llama"))
    assert not opener.twice().weights.is_offloaded
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10}))
    with pytest.warns(UserWarning, match="stay on disk") as caught:
        assert opener.open().weights.is_offloaded
    assert len(caught) == 1 and not opener.boots


def test_a_record_holds_no_values(tmp_path, records):
    Opener(save("llama", tmp_path / "llama")).open()
    (path,) = records.iterdir()

    def numbers(part: Any) -> list[float]:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        return [part] if isinstance(part, float) else [x for each in parts for x in numbers(each)]

    record = record_files.read_record(path.name)
    assert all(x in (1e-6, 1.0, 1e-5) for x in numbers(record)), "only the epsilon of the norms, and a multiplier"
    assert isinstance(Opener(tmp_path / "llama").open().weights.host.outer("W_E"), LazyTensor)
