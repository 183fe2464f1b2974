"""fit_factors: the hidden states that are used, and the same factors after an interruption."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from safetensors.torch import save_file

from embspace_lens import EmbspaceError
from embspace_lens.factors import FactorFitter, fit_factors, training
from embspace_lens.forward import states as states_module
from embspace_lens.forward.states import hidden_states
from embspace_lens.forward.texts import texts_of

TEXTS = [" ".join(f"w{2 + (7 * i + 3 * j) % 60}" for j in range(3 + i % 9)) for i in range(60)]


OPTIONS = {"n_factors": 8, "l1": 0.3, "layers": [0, 1], "buffer": 100}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("gpt2")


@pytest.fixture(scope="module")
def expected(model):
    return fit_factors(model, TEXTS, **OPTIONS)


def test_every_hidden_state_is_used_once_per_epoch(model, monkeypatch):
    received = []
    update = FactorFitter.update
    monkeypatch.setattr(
        FactorFitter, "update", lambda self, x, weight=None: received.append((x, weight)) or update(self, x, weight)
    )
    fit_factors(model, TEXTS, **OPTIONS, epochs=2)
    used = torch.cat([x for x, _ in received])
    states = torch.cat([s for part in hidden_states(model, TEXTS, [0, 1]) for s in part.states.values()])
    assert len(used) == 2 * len(states)
    torch.testing.assert_close(used.sum(dim=0), 2 * states.sum(dim=0), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(used.sort(dim=0).values[::2], states.sort(dim=0).values, atol=1e-4, rtol=1e-4)
    first = next(iter(hidden_states(model, TEXTS, [0]))).states[0]
    assert not torch.allclose(used[:20], first[:20]), "shuffled"
    monkeypatch.undo()


def test_frequent_tokens_have_smaller_weights(model, monkeypatch):
    weights = []
    monkeypatch.setattr(FactorFitter, "update", lambda self, x, weight=None: weights.append((x, weight)))
    monkeypatch.setattr(FactorFitter, "flush", lambda self: None)
    texts = ["w5 " * 20] * 10 + ["w9"]
    fit_factors(model, texts, n_factors=4, layers=[-1], l1=0.1)
    ((_, weight),) = weights
    rare = weight.max()
    assert (weight == rare).sum() == 1 and rare == pytest.approx((2 / (201 / zoo.D_VOCAB + 1)) ** -0.5)
    assert weight.min() == pytest.approx((201 / (201 / zoo.D_VOCAB + 1)) ** -0.5)
    weights.clear()
    fit_factors(model, texts, n_factors=4, layers=[-1], l1=0.1, weighting="uniform")
    assert (weights[0][1] == 1).all()


def test_fit_depends_only_on_the_seed(model, expected):
    assert torch.equal(fit_factors(model, TEXTS, **OPTIONS).directions, expected.directions)
    assert not torch.equal(fit_factors(model, TEXTS, **OPTIONS, seed=1).directions, expected.directions)
    torch.testing.assert_close(expected.directions.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_fit_resumes_to_the_same_factors(model, expected, tmp_path, monkeypatch, after):
    folder, flushes = tmp_path / "fit", []
    flush = training._Fit._flush

    def interrupt(self):
        flush(self)
        flushes.append(self.n_batches)
        if len(flushes) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as m:
        m.setattr(training._Fit, "_flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    saved = json.loads((folder / "fit.json").read_text())
    assert saved["flushes"] == after and [path.name for path in folder.glob("fitter-*")] == [saved["fitter"]]
    resumed = fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    uninterrupted = fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40)
    assert torch.equal(resumed.directions, uninterrupted.directions)
    changed = zoo.boot(zoo.ZOO["gpt2"]())
    with torch.no_grad():
        changed.blocks[0].mlp.out.weight[0, 0] += 1
    with pytest.raises(EmbspaceError, match=r"another fit; these options differ: model\."):
        fit_factors(changed, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)
    with pytest.raises(EmbspaceError, match=r"another fit; these options differ: l1\."):
        fit_factors(model, TEXTS, **OPTIONS | {"l1": 0.5}, batch_tokens=40, checkpoint=folder)
    (folder / saved["fitter"] / "counts.safetensors").write_bytes(b"x") if (folder / saved["fitter"]).exists() else None
    for path in folder.glob("fitter-*/counts.safetensors"):
        path.write_bytes(b"x")
    with pytest.raises(EmbspaceError, match="The checkpoint in .* cannot be read"):
        fit_factors(model, TEXTS, **OPTIONS, batch_tokens=40, checkpoint=folder)


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT: a shell that starts the tests in the background makes them ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", ["reading", "fitting"])
def test_ctrl_c_before_the_first_checkpoint_keeps_finished_work(model, tmp_path, monkeypatch, at):
    """A signal while a batch is read, or in the middle of a step of the fitter."""
    options = OPTIONS | {"batch_tokens": 40}
    uninterrupted = fit_factors(model, TEXTS, **options)
    owner, name, n = (training._Fit, "register", 9) if at == "reading" else (FactorFitter, "update", 2)
    original, calls = getattr(owner, name), []

    def interrupt(self, *arguments, **named):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments, **named)

    folder = tmp_path / "fit"
    with monkeypatch.context() as m:
        m.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt, match="The checkpoint is in .*fit. The same call resumes from it"):
            fit_factors(model, TEXTS, **options, checkpoint=folder)
    saved = json.loads((folder / "fit.json").read_text())
    assert saved["flushes"] >= 1 and not saved["done"]
    if at == "fitting":
        assert saved["flushes"] == 2, "the step is completed before the checkpoint is saved"
    resumed = fit_factors(model, TEXTS, **options, checkpoint=folder)
    assert torch.equal(resumed.directions, uninterrupted.directions)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_before_any_step_is_reported(model, tmp_path, monkeypatch):
    monkeypatch.setattr(training._Fit, "register", lambda self, tokens: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint"):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path / "fit")
    with pytest.raises(KeyboardInterrupt, match="^$"):
        fit_factors(model, TEXTS, **OPTIONS)


@pytest.mark.parametrize("options", [{}, {"max_vectors": 150}, {"epochs": 2, "buffer": 10_000}])
def test_finished_fit_is_returned_again(model, tmp_path, options):
    options = OPTIONS | {"batch_tokens": 40} | options
    uninterrupted = fit_factors(model, TEXTS, **options)
    for _ in range(3):
        assert torch.equal(
            fit_factors(model, TEXTS, **options, checkpoint=tmp_path).directions, uninterrupted.directions
        )


@pytest.mark.parametrize("step", ["_flush", "flush"])
def test_fit_interrupted_at_the_end_resumes_to_the_same_factors(model, tmp_path, monkeypatch, step):
    """The last hidden states are used and saved, but the fit is not yet marked as done."""
    options = OPTIONS | {"batch_tokens": 40}
    uninterrupted = fit_factors(model, TEXTS, **options)

    class Killed(BaseException):
        pass

    def raise_killed(self):
        raise Killed

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as m:
        flush = training._Fit._flush
        if step == "flush":
            m.setattr(FactorFitter, "flush", raise_killed)
        else:
            m.setattr(training._Fit, "finish", lambda self: (flush(self), raise_killed(self)))
        with pytest.raises(Killed):
            fit_factors(model, TEXTS, **options, checkpoint=tmp_path)
    assert torch.equal(fit_factors(model, TEXTS, **options, checkpoint=tmp_path).directions, uninterrupted.directions)


def test_checkpoint_of_other_texts_is_refused(model, tmp_path):
    options = OPTIONS | {"batch_tokens": 40}
    fit_factors(model, TEXTS, **options, checkpoint=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for other_texts in (
        [text.replace("w3", "w4") for text in TEXTS],
        TEXTS[:30],
        [*TEXTS, "w2 w3"],
        [*TEXTS, *TEXTS * 20],
    ):
        with pytest.raises(EmbspaceError, match="the checkpoint of a fit to other texts"):
            fit_factors(model, other_texts, **options, checkpoint=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], "is not a checkpoint of fit_factors"),
        ({"options": 3}, "is not a checkpoint of fit_factors"),
        ({"parts": "x"}, "The checkpoint in .* cannot be read"),
        ({"fitter": 3}, "The checkpoint in .* cannot be read"),
        ({"counts": 3}, "counts of 3 tokens"),
    ],
)
def test_damaged_checkpoint_is_refused(model, tmp_path, change, message):
    fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path)
    facts = json.loads((tmp_path / "fit.json").read_text())
    if "counts" in change:
        save_file({"counts": torch.zeros(3, dtype=torch.int64)}, tmp_path / facts["fitter"] / "counts.safetensors")
    else:
        (tmp_path / "fit.json").write_text(json.dumps(facts | change if isinstance(change, dict) else change))
    with pytest.raises(EmbspaceError, match=message):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path)


def test_checkpoint_that_cannot_be_written_raises_an_error(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EmbspaceError, match="The folder .* cannot be created"):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path / "file")
    write = Path.write_bytes

    def fail_on_counts(self, data):
        if "counts" in self.name:
            write(self, data[:9])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(Path, "write_bytes", fail_on_counts)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fit_factors(model, TEXTS, **OPTIONS, checkpoint=tmp_path / "full")
    assert not (tmp_path / "full" / "fit.json").exists()


def test_fit_stops_after_max_vectors(model, tmp_path):
    fit_factors(model, TEXTS, **OPTIONS, max_vectors=120, batch_tokens=40, checkpoint=tmp_path)
    assert 120 <= json.loads((tmp_path / "fit.json").read_text())["seen"] < 300


class Dataset:
    """The interface of a Hugging Face dataset that `texts_of` uses."""

    column_names = ("id", "review")

    def __iter__(self):
        return ({"id": i, "review": text} for i, text in enumerate(TEXTS))

    def __len__(self):
        return len(TEXTS)


def test_texts_may_be_a_list_a_table_or_an_iterator(model, expected, tmp_path):
    pd.DataFrame({"review": TEXTS}).to_parquet(tmp_path / "reviews.parquet")
    (tmp_path / "reviews.txt").write_text("\n\n".join(TEXTS))
    for texts, options in (
        (iter(TEXTS), {}),
        (pd.DataFrame({"review": TEXTS}), {"column": "review"}),
        (Dataset(), {"column": "review"}),
        (tmp_path / "reviews.parquet", {"column": "review"}),
        (str(tmp_path / "reviews.txt"), {}),
    ):
        assert torch.equal(fit_factors(model, texts, **OPTIONS, **options).directions, expected.directions)
    assert list(texts_of(Dataset(), column="review")) == TEXTS and len(texts_of(Dataset(), column="review")) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "contain no tokens"),
        ({"texts": iter(TEXTS), "epochs": 2}, "can be read only once"),
        ({"texts": "nowhere.txt"}, "nowhere.txt is not a file"),
        ({"texts": "one\ntext"}, "texts is one string"),
        ({"texts": Dataset()}, r"no column 'text'. Its columns are 'id', 'review'"),
        ({"weighting": "rare"}, "weighting='rare' is not one of 'frequency', 'uniform'"),
        ({"epochs": 0}, "epochs=0 is not an integer of 1 or more"),
        ({"n_factors": 0}, "n_factors"),
        ({"l1": 0}, "l1"),
        ({"layers": [7]}, "layer=7 is out of range"),
        ({"layers": []}, "layers selects no layer"),
        ({"texts": None}, "texts=None holds no texts"),
        ({"texts": pd.DataFrame({"review": TEXTS})}, "The table has no column 'text'. Its columns are 'review'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_invalid_arguments_are_refused(change, message, model):
    arguments = {"texts": TEXTS, **OPTIONS} | change
    with pytest.raises(EmbspaceError, match=message):
        fit_factors(model, arguments.pop("texts"), **arguments)


@pytest.mark.usefixtures("unchecked_types")  # numpy integers are no int
def test_layers_may_be_an_integer_or_any_sequence(model):
    options = {key: value for key, value in OPTIONS.items() if key != "layers"}
    first = fit_factors(model, TEXTS, **options, layers=0)
    for layers in ([0], np.array([0]), (0, 0), range(1)):
        assert torch.equal(fit_factors(model, TEXTS, **options, layers=layers).directions, first.directions)


def test_later_epochs_read_cached_states(model, tmp_path, monkeypatch):
    calls, compute = [], states_module.states_of
    monkeypatch.setattr(states_module, "states_of", lambda *arguments: calls.append(1) or compute(*arguments))
    cached = fit_factors(model, TEXTS, **OPTIONS | {"epochs": 3}, shards=tmp_path / "states")
    n = len(list((tmp_path / "states").iterdir()))
    assert len(calls) == n, "each batch is computed once"
    assert torch.equal(cached.directions, fit_factors(model, TEXTS, **OPTIONS | {"epochs": 3}).directions)
