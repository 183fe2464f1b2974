"""The script that trains the demo models: rows of tokens, checkpoints, the same weights after an interruption."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from embspace_lens import EmbeddingLens, EmbspaceError
from embspace_lens.demo import train as training
from embspace_lens.demo.corpus import END_OF_TEXT, pack, train_tokenizer

WORDS = "the film was good bad long short and but very not an actor played his role well plot story ending".split()


def texts(n=60):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=40)) + "." for _ in range(n)]


def test_rows_are_complete_and_begin_with_end_of_text():
    tokenizer = train_tokenizer(texts(), 300)
    rows = pack(["a b", "c"], tokenizer, 2)
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    stream = [*tokenizer.encode("a b"), end_of_text, *tokenizer.encode("c"), end_of_text]
    assert (rows[:, 0] == end_of_text).all()
    assert rows[:, 1:].ravel().tolist() == stream[: len(stream) // 2 * 2]
    with pytest.raises(EmbspaceError, match="tokens, and one row needs 500. Give more text."):
        pack(["a b"], tokenizer, 500)


def test_resumed_run_gives_the_same_weights(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(texts(), 300)
    rows = pack(texts(), tokenizer, 16)
    config = training.TrainConfig(d_model=16, n_layers=1, n_heads=2, d_vocab=300, n_ctx=16, batch_size=8, passes=2)

    def run(folder, **options):
        folder.mkdir(exist_ok=True)
        return training.train(rows, rows[:4], tokenizer, folder, config, **options)

    uninterrupted, facts = run(tmp_path / "uninterrupted")
    assert facts["tokens_seen"] == len(rows) // 8 * 8 * 2 * 16
    assert facts["held_out_loss"] < np.log(300), "the loss is below that of a uniform prediction"

    saved = training.save_checkpoint

    def interrupt(folder, model, optimizer, step):
        saved(folder, model, optimizer, step)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", checkpoint_seconds=-1.0)
    monkeypatch.setattr(training, "save_checkpoint", saved)
    assert training.checkpoint_step(tmp_path / "resumed") == 5
    resumed, _ = run(tmp_path / "resumed")
    for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    fresh = training.build(config, tokenizer)
    assert not torch.equal(next(fresh.parameters()), next(uninterrupted.parameters()))


@pytest.mark.full
def test_script_writes_a_model_that_the_lens_reads(tmp_path):
    source, folder = tmp_path / "reviews.txt", tmp_path / "little"
    source.write_text("\n\n".join(texts(120)))
    command = [sys.executable, "-m", "embspace_lens.demo.train", source, folder, "--d-model", "16", "--n-layers", "1"]
    command += ["--n-heads", "2", "--d-vocab", "300", "--n-ctx", "16", "--batch-size", "8"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "train.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert not (folder / "checkpoint.safetensors").exists()
    facts = json.loads((folder / "train.json").read_text())
    assert f"{facts['held_out_loss']:.3f}" in (folder / "README.md").read_text()
    assert load_file(folder / "counts.safetensors")["counts"].sum() == facts["tokens_in_corpus"]
    lens = EmbeddingLens.from_pretrained(folder)
    assert lens.name == "little" and len(lens.vocabulary) == len(AutoTokenizer.from_pretrained(folder))
    assert len(lens.neurons(k=2)) == 64 * 2 * 2
    second_run = subprocess.run([*map(str, command), "--seed", "1"], capture_output=True, text=True)
    assert (
        second_run.returncode == 1
        and "holds a run with other settings" in second_run.stderr
        and "Traceback" not in second_run.stderr
    )


@pytest.mark.full
def test_finished_folder_is_not_changed_and_no_file_is_incomplete(tmp_path, monkeypatch, capsys):
    source, folder = tmp_path / "reviews.txt", tmp_path / "little"
    source.write_text("\n\n".join(texts(120)))
    options = dict(d_model=16, n_layers=1, n_heads=2, d_vocab=300, n_ctx=16, batch_size=8, device="cpu")

    def fail(self, folder, *args, **kwargs):
        (Path(folder) / "tokenizer.json").write_text("half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
        with pytest.raises(OSError, match="No space left"):
            training.main(source, folder, **options)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "train.json"]
    assert list(json.loads((folder / "train.json").read_text())) == ["config"]

    training.main(source, folder, **options)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "checkpoint.safetensors" not in files and not any(name.startswith(".") for name in files)
    capsys.readouterr()
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    training.main(source, folder, **options)
    assert "is finished: " in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes=0 is not an integer of 1 or more."),
        ({"d_vocab": 256}, "d_vocab=256 is not an integer of 257 or more."),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not a finite number above 0."),
        ({"d_model": 16, "n_heads": 3}, "d_model=16 is not a multiple of n_heads=3."),
    ],
)
def test_unusable_configurations_raise_an_error(options, message):
    with pytest.raises(EmbspaceError, match=message):
        training.TrainConfig(**options)
