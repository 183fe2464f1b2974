"""Factors and their fit: planted dictionaries come back, a killed fit goes on as if nothing had been, files are safe."""

import doctest
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tables import check_tidy

from embspace_lens import files
from embspace_lens.errors import EmbspaceError
from embspace_lens.factors import FactorFitter, Factors, dictionary, sparse_codes, sparse_coding
from embspace_lens.factors import fitter as fitting
from embspace_lens.factors.fitter import improve

SPARE = 60  # factors fitted where 48 are planted: no one knows the number, and with none to spare some fits merge two
MEASURES = ["n_vectors", "objective", "explained_variance", "n_active", "n_dead"]


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def planted(n_vectors, n_factors=48, d_model=32, active=3, noise=0.02, seed=0):
    """Sums of `active` unit directions with codes between 1 and 2, and noise; and those directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = unit(torch.randn(n_factors, d_model, generator=generator))
    chosen = torch.rand(n_vectors, n_factors, generator=generator).topk(active, dim=1).indices
    codes = torch.zeros(n_vectors, n_factors).scatter_(
        1, chosen, 1 + torch.rand(n_vectors, active, generator=generator)
    )
    return codes @ directions + noise * torch.randn(n_vectors, d_model, generator=generator), directions


def found(directions, fitted, cosine=0.95):
    """The share of directions that have a fitted one near them."""
    return float(((directions @ fitted.T).amax(1) > cosine).float().mean())


def fit(x, n_factors, *, l1=0.2, cut=None, weight=None, **options):
    fitter = FactorFitter(x.shape[1], n_factors, l1=l1, **options)
    for rows in torch.arange(len(x)).split(cut or len(x)):
        fitter.update(x[rows], None if weight is None else weight[rows])
    return fitter


@pytest.fixture(scope="module")
def fitted():
    x, directions = planted(16_000)
    return fit(x, SPARE, batch_size=256), directions


# --------------------------------------------------------------------------------------------------------------- fitting


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_planted_dictionaries_come_back(noise, fitted):
    if noise:
        x, directions = planted(16_000, noise=noise)
        fitter = fit(x, SPARE, batch_size=256)
    else:
        fitter, directions = fitted
    assert found(directions, fitter.factors.directions) >= 0.95
    assert fitter.history["explained_variance"].iloc[-1] > 0.8


def test_noise_holds_nothing_planted(fitted):
    """The control: the same fit on Gaussian noise of the same size, beside the same directions."""
    _, directions = fitted
    x = torch.randn(16_000, 32) * planted(16_000)[0].std()
    assert found(directions, fit(x, SPARE, batch_size=256).factors.directions) < 0.05


def test_factors_are_of_length_one_and_better_than_the_first(fitted):
    fitter, directions = fitted
    fitted_directions = fitter.factors.directions
    torch.testing.assert_close(fitted_directions.norm(dim=1), torch.ones(SPARE))
    history = fitter.history
    assert history["objective"].iloc[-1] < history["objective"].iloc[0] / 1.1
    x, _ = planted(500, seed=0)
    true = sparse_codes(x, directions, 0.2)[0]
    ours = sparse_codes(x, fitted_directions, 0.2)[0]
    assert abs((ours > 0.1).sum() / (true > 0.1).sum() - 1) < 0.2


def test_a_step_improves_on_every_factor():
    """One factor at a time, in the plainest loop; and no update may raise what it minimises."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(300, 100, generator=generator) * (torch.rand(300, 100, generator=generator) < 0.2)
    x = torch.randn(300, 8, generator=generator)
    A, B = codes.T @ codes, codes.T @ x
    A[3], A[:, 3], B[3] = 0, 0, 0  # in no code: stays as it is
    before = unit(torch.randn(100, 8, generator=generator))
    slow = before.clone().double()
    for c in range(100):
        if A[c, c] > 0:
            target = slow[c] + (B[c].double() - A[c].double() @ slow) / A[c, c].double()
            slow[c] = target / target.norm()
    fast = before.clone()
    improve(fast, A, B)
    torch.testing.assert_close(fast, slow.float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(fast[3], before[3])

    def loss(directions):
        return float((directions.T @ A @ directions).trace() / 2 - (directions.T @ B).trace())

    assert loss(fast) < loss(before)


def test_how_the_stream_is_cut_cannot_be_seen():
    x, _ = planted(1500)
    whole = fit(x, 48, batch_size=256)
    cut = fit(x, 48, batch_size=256, cut=77)
    assert torch.equal(whole.factors.directions, cut.factors.directions)
    assert whole.history.equals(cut.history)
    assert whole.n_seen == cut.n_seen == 1280 and whole.n_waiting == 220


def test_the_rest_is_learnt_at_the_end():
    x, _ = planted(300)
    fitter = fit(x, 48, batch_size=256)
    before = fitter.factors.directions
    fitter.flush()
    assert (fitter.n_seen, fitter.n_waiting) == (300, 0)
    assert not torch.equal(fitter.factors.directions, before)
    fitter.flush()
    assert len(fitter.history) == 2


def test_seeds_differ_and_repeat():
    x, _ = planted(600)
    one, same, other = (fit(x, 48, batch_size=256, seed=seed).factors.directions for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_weights_say_what_counts():
    """Two groups of vectors, one factor: it goes to the group that counts."""
    first = torch.arange(600) % 2 == 0
    x = torch.where(first[:, None], torch.tensor([2.0, 0.5]), torch.tensor([0.5, 2.0])) + 0.01 * torch.randn(600, 2)
    for chosen, axis in ((first, 0), (~first, 1)):
        factors = fit(x, 1, l1=0.1, batch_size=100, weight=torch.where(chosen, 1.0, 0.001)).factors
        assert factors.directions[0, axis] > 0.96
    even = fit(x, 1, l1=0.1, batch_size=100, weight=torch.full((600,), 7.0)).factors.directions
    assert (even - 0.5**0.5).abs().max() < 0.05
    torch.testing.assert_close(even, fit(x, 1, l1=0.1, batch_size=100).factors.directions, atol=1e-4, rtol=1e-4)


@pytest.fixture
def misplaced(monkeypatch):
    """A stream, what is planted in it, and a fit whose first directions lie, a third of them, where no vector has anything."""
    first = FactorFitter._first

    def begin(fitter, x):
        start = first(fitter, x)
        start[:20] = torch.eye(40)[32:].repeat(3, 1)[:20]
        return start

    monkeypatch.setattr(FactorFitter, "_first", begin)
    return [torch.nn.functional.pad(part, (0, 8)) for part in planted(16_000)]


def test_dead_factors_are_revived(misplaced, monkeypatch):
    x, directions = misplaced
    revived = fit(x, SPARE, batch_size=256)
    assert revived.history["n_dead"].max() >= 16 and revived.history["n_dead"].iloc[-1] == 0
    assert found(directions, revived.factors.directions) >= 0.95
    monkeypatch.setattr(FactorFitter, "_revive", lambda *_: None)
    left = fit(x, SPARE, batch_size=256)
    assert left.history["n_dead"].iloc[-1] == 20
    assert found(directions, left.factors.directions) < 0.8


def test_a_resumed_fit_revives_when_an_unbroken_one_does(misplaced, tmp_path):
    x, _ = misplaced
    unbroken = fit(x[:2000], SPARE, batch_size=256)
    assert unbroken.history["n_dead"].max() > 0
    fit(x[:520], SPARE, batch_size=256).save(tmp_path)
    resumed = FactorFitter.load(tmp_path)
    resumed.update(x[520:2000])
    assert resumed.history.equals(unbroken.history)
    assert torch.equal(resumed.factors.directions, unbroken.factors.directions)


def test_the_first_factors_are_distinct():
    """A token's embedding comes again and again; as a factor it is wanted once."""
    x = torch.randn(6, 16).repeat(50, 1)
    start = FactorFitter(16, 6)._first(x)
    assert ((start @ unit(x[:6]).T) > 0.999).sum(0).tolist() == [1] * 6


def test_a_price_too_high_for_all_ends_well():
    x, _ = planted(2000)
    fitter = fit(x, 48, l1=1e4, batch_size=256)
    assert fitter.history["n_active"].max() == 0
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(48))


def test_zero_vectors_are_no_factors():
    fitter = fit(torch.zeros(600, 4), 8, batch_size=256)
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(8))
    assert fitter.history["explained_variance"].isna().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions(dtype):
    x, _ = planted(300)
    fitter = fit(x.to(dtype), 48, batch_size=256)
    assert fitter.factors.directions.dtype == torch.float32
    assert torch.equal(fitter.factors.directions, fit(x.to(dtype).float(), 48, batch_size=256).factors.directions)


def test_the_history_is_a_table(fitted):
    fitter, _ = fitted
    check_tidy(fitter.history, ["n_vectors"], MEASURES)
    check_tidy(FactorFitter(4, 8).history, ["n_vectors"], MEASURES)
    x, _ = planted(256)
    fitter = fit(x, 48, batch_size=256)
    first = fitter.history.iloc[0]
    start = FactorFitter(32, 48, l1=0.2, batch_size=256)._first(x)
    codes = sparse_codes(x, start, 0.2, gap=1e-6).codes
    left = (x - codes @ start).square().sum()
    assert first["objective"] == pytest.approx(float(left / 2 + 0.2 * codes.sum()) / 256, rel=2e-3)
    assert first["explained_variance"] == pytest.approx(float(1 - left / (x - x.mean(0)).square().sum()), abs=2e-3)
    assert first["n_vectors"] == 256 and first["n_active"] == pytest.approx(float((codes > 0).sum()) / 256, rel=0.05)


def test_factors_can_be_had_at_any_time():
    fitter = FactorFitter(4, 8)
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(8))
    kept = fitter.factors.directions
    fitter.update(torch.randn(1024, 4))
    assert not torch.equal(kept, fitter.factors.directions), "factors once given do not change"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 5),), "width 5, but the dictionary's residual stream has d_model=4"),
        ((torch.ones(4),), r"shape \(4,\)"),
        ((torch.tensor([[1.0, float("nan"), 0, 0]]),), "NaN or infinite values in hidden states"),
        ((torch.ones(3, 4), torch.ones(2)), r"weight has shape \(2,\) for 3 hidden states"),
        ((torch.ones(1, 4), torch.tensor([-1.0])), "weight holds negative"),
        ((torch.ones(1, 4), torch.tensor([float("nan")])), "weight holds negative, NaN"),
        ((["no"],), "cannot be made a tensor"),
    ],
)
def test_what_cannot_be_learnt_from_is_said(arguments, message):
    fitter = FactorFitter(4, 8)
    with pytest.raises(EmbspaceError, match=message):
        fitter.update(*arguments)
    assert fitter.n_waiting == 0


@pytest.mark.parametrize(
    "options", [{"d_model": 0}, {"n_factors": 2.5}, {"l1": 0}, {"l1": -1.0}, {"seed": -1}, {"batch_size": 0}]
)
def test_numbers_that_make_no_sense(options):
    with pytest.raises(EmbspaceError, match=next(iter(options))):
        FactorFitter(**({"d_model": 4, "n_factors": 8} | options))


# ---------------------------------------------------------------------------------------------------------------- resume


def test_a_saved_fit_goes_on_bit_for_bit(tmp_path):
    x, _ = planted(1500)
    unbroken = fit(x, 48, batch_size=256)
    broken = fit(x[:700], 48, batch_size=256)
    broken.save(tmp_path / "fit")
    resumed = FactorFitter.load(tmp_path / "fit")
    assert (resumed.n_seen, resumed.n_waiting) == (512, 188)
    assert repr(resumed) == "FactorFitter(48 factors, d_model 32, l1 0.2; 512 vectors seen)"
    resumed.update(x[resumed.n_seen + resumed.n_waiting :])
    assert torch.equal(resumed.factors.directions, unbroken.factors.directions)
    assert resumed.history.equals(unbroken.history)


CHILD = """
import sys, torch
from embspace_lens.factors import FactorFitter
torch.set_num_threads(int(sys.argv[2]))
fitter = FactorFitter(37, 60, l1=0.2, batch_size=200)
part = 0
while True:
    fitter.update(torch.randn(150, 37, generator=torch.Generator().manual_seed(part)))
    fitter.save(sys.argv[1])
    part += 1
    print(part, flush=True)
"""


def test_a_killed_fit_goes_on_bit_for_bit(tmp_path):
    """kill -9 at an arbitrary moment of a fit that saves all the time; nothing of what was saved is lost or torn."""
    threads = str(torch.get_num_threads())
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), threads], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while int(child.stdout.readline() or 99) < 9:
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    resumed = FactorFitter.load(tmp_path)
    parts, rest = divmod(resumed.n_seen + resumed.n_waiting, 150)
    assert rest == 0 and parts >= 9, "it holds whole updates, up to the last that was saved"
    unbroken = FactorFitter(37, 60, l1=0.2, batch_size=200)
    for part in range(parts + 6):
        x = torch.randn(150, 37, generator=torch.Generator().manual_seed(part))
        unbroken.update(x)
        if part >= parts:
            resumed.update(x)
    assert torch.equal(resumed.factors.directions, unbroken.factors.directions)
    assert resumed.history.equals(unbroken.history)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    x, _ = planted(600)
    fitter = fit(x, 48, batch_size=256)
    fitter.save(tmp_path)
    fitter.factors.save(tmp_path / "factors")
    saved = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    fitter.update(x)
    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fitter.save(tmp_path)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fitter.factors.save(tmp_path / "factors")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == saved


# ----------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def factors():
    return Factors(unit(torch.randn(20, 6)), l1=0.25)


def test_encode_and_decode(factors):
    x = torch.randn(2, 3, 6)
    codes = factors.encode(x)
    assert codes.shape == (2, 3, 20)
    flat = sparse_codes(x.view(-1, 6), factors.directions, 0.25).codes
    assert torch.equal(codes.view(-1, 20), flat)
    torch.testing.assert_close(factors.decode(codes), codes @ factors.directions)
    assert factors.encode(x[0, 0]).shape == (20,) and factors.decode(codes[0, 0]).shape == (6,)
    assert (factors.n_factors, factors.d_model) == (20, 6)
    assert repr(factors) == "Factors(20 factors, d_model 6, l1 0.25)"
    assert factors.decode(codes.half()).dtype == torch.float32
    with pytest.raises(EmbspaceError, match="width 5"):
        factors.encode(torch.ones(2, 5))
    with pytest.raises(EmbspaceError, match="last size is 20 factors"):
        factors.decode(torch.ones(2, 19))
    with pytest.raises(EmbspaceError, match="NaN"):
        Factors(torch.full((2, 2), float("nan")), 0.1)
    with pytest.raises(EmbspaceError, match="l1=0"):
        Factors(torch.eye(2), 0)
    with pytest.raises(EmbspaceError, match="give \\[n_factors, d_model\\]"):
        Factors(torch.ones(2), 0.1)
    with pytest.raises(AttributeError):
        factors.l1 = 1.0


def test_saved_factors_come_back(factors, tmp_path):
    assert factors.save(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    loaded = Factors.load(tmp_path / "a" / "b")
    assert torch.equal(loaded.directions, factors.directions) and loaded.l1 == 0.25
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    config = json.loads((tmp_path / "a" / "b" / "cfg.json").read_text())
    assert config == {
        "architecture": "transformer_factors",
        "d_in": 6,
        "d_sae": 20,
        "l1": 0.25,
        "dtype": "float32",
    }
    factors.save(tmp_path / "half", dtype=torch.float16)
    half = Factors.load(tmp_path / "half")
    assert half.directions.dtype == torch.float32
    torch.testing.assert_close(half.directions, factors.directions, atol=1e-3, rtol=1e-3)


def test_damaged_and_foreign_files_are_refused(factors, tmp_path):
    with pytest.raises(EmbspaceError, match="does not exist"):
        Factors.load(tmp_path)
    factors.save(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-7], data[:20], b"", b"\x80\x04K\x01."):
        path.write_bytes(damaged)
        with pytest.raises(EmbspaceError, match="damaged or not a safetensors file"):
            Factors.load(tmp_path)
    save_file({"W_dec": torch.eye(2)}, path)
    with pytest.raises(EmbspaceError, match="not of the kind 'transformer_factors'"):
        Factors.load(tmp_path)
    for tensors, l1 in (
        ({"W_enc": torch.eye(2)}, "0.1"),
        ({"W_dec": torch.eye(2)}, "x"),
        ({"W_dec": torch.ones(2)}, "1"),
    ):
        save_file(tensors, path, metadata={"architecture": "transformer_factors", "l1": l1})
        with pytest.raises(EmbspaceError, match="no complete dictionary"):
            Factors.load(tmp_path)
    with pytest.raises(EmbspaceError, match="does not exist"):
        FactorFitter.load(tmp_path)
    FactorFitter(4, 8).save(tmp_path / "fit")
    state = tmp_path / "fit" / fitting.STATE
    tensors = load_file(state)
    save_file(tensors | {"A": torch.eye(3)}, state, metadata={"architecture": fitting.KIND})
    with pytest.raises(EmbspaceError, match="no complete fit"):
        FactorFitter.load(tmp_path / "fit")
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(EmbspaceError, match="cannot be made a folder"):
        factors.save(file)


def test_the_export_has_the_layout_of_saelens(factors, tmp_path):
    factors.to_saelens(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("standard", 6, 20)
    assert "Approximate" in config["metadata"]["note"]
    sae = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in sae.items()} == {
        "W_enc": (6, 20),
        "b_enc": (20,),
        "W_dec": (20, 6),
        "b_dec": (6,),
    }
    with pytest.raises(EmbspaceError, match="not of the kind"):
        Factors.load(tmp_path)
    square = Factors(torch.eye(6), 0.25)  # at right angles the export is exact
    square.to_saelens(tmp_path)
    sae = load_file(tmp_path / "sae_weights.safetensors")
    x = torch.randn(5, 6)
    torch.testing.assert_close(torch.relu(x @ sae["W_enc"] + sae["b_enc"]), square.encode(x), atol=1e-4, rtol=1e-4)


def test_the_export_loads_in_saelens(factors, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    factors.to_saelens(tmp_path)
    sae = sae_lens.SAE.load_from_disk(tmp_path)
    x = torch.randn(5, 6)
    torch.testing.assert_close(sae.encode(x), torch.relu(x @ factors.directions.T - 0.25))


@pytest.mark.parametrize("module", [sparse_coding, dictionary, fitting], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_run(module):
    names = {"torch": torch} | vars(module)
    ran = 0
    for test in doctest.DocTestFinder().find(module, globs=names):
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0, test.name
        ran += result.attempted
    assert ran >= 2
