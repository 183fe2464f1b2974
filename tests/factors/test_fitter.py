"""FactorFitter recovers planted dictionaries, and a fit that is stopped resumes bit for bit."""

import subprocess
import sys
import textwrap

import pytest
import torch
from tables import check_tidy

from embspace_lens import files
from embspace_lens.errors import EmbspaceError
from embspace_lens.factors import FactorFitter, sparse_codes

N_FACTORS = 60  # more than the 48 planted directions; with exactly 48 some fits merge two of them
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


def recovered_share(directions, fitted, cosine=0.95):
    """The share of directions to which a fitted one has a large cosine."""
    return float(((directions @ fitted.T).amax(1) > cosine).float().mean())


def fit(x, n_factors, *, l1=0.2, split=None, weight=None, **options):
    fitter = FactorFitter(x.shape[1], n_factors, l1=l1, **options)
    for rows in torch.arange(len(x)).split(split or len(x)):
        fitter.update(x[rows], None if weight is None else weight[rows])
    return fitter


@pytest.fixture(scope="module")
def fitted():
    x, directions = planted(16_000)
    return fit(x, N_FACTORS, batch_size=256), directions


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_planted_dictionary_is_recovered(noise, fitted):
    if noise:
        x, directions = planted(16_000, noise=noise)
        fitter = fit(x, N_FACTORS, batch_size=256)
    else:
        fitter, directions = fitted
    assert recovered_share(directions, fitter.factors.directions) >= 0.95
    assert fitter.history["explained_variance"].iloc[-1] > 0.8


def test_planted_dictionary_is_not_recovered_from_noise(fitted):
    """A control: the same fit on Gaussian noise of the same variance."""
    _, directions = fitted
    x = torch.randn(16_000, 32) * planted(16_000)[0].std()
    assert recovered_share(directions, fit(x, N_FACTORS, batch_size=256).factors.directions) < 0.05


def test_factors_have_length_one_and_the_objective_decreases(fitted):
    fitter, directions = fitted
    fitted_directions = fitter.factors.directions
    torch.testing.assert_close(fitted_directions.norm(dim=1), torch.ones(N_FACTORS))
    history = fitter.history
    assert history["objective"].iloc[-1] < history["objective"].iloc[0] / 1.1
    x, _ = planted(500, seed=0)
    planted_codes = sparse_codes(x, directions, 0.2)[0]
    fitted_codes = sparse_codes(x, fitted_directions, 0.2)[0]
    assert abs((fitted_codes > 0.1).sum() / (planted_codes > 0.1).sum() - 1) < 0.2


def test_result_is_independent_of_how_the_stream_is_split():
    x, _ = planted(1500)
    fit_at_once = fit(x, 48, batch_size=256)
    fit_in_parts = fit(x, 48, batch_size=256, split=77)
    assert torch.equal(fit_at_once.factors.directions, fit_in_parts.factors.directions)
    assert fit_at_once.history.equals(fit_in_parts.history)
    assert fit_at_once.n_seen == fit_in_parts.n_seen == 1280 and fit_at_once.n_waiting == 220


def test_flush_uses_the_waiting_vectors():
    x, _ = planted(300)
    fitter = fit(x, 48, batch_size=256)
    before = fitter.factors.directions
    fitter.flush()
    assert (fitter.n_seen, fitter.n_waiting) == (300, 0)
    assert not torch.equal(fitter.factors.directions, before)
    fitter.flush()
    assert len(fitter.history) == 2


def test_same_seed_gives_same_factors():
    x, _ = planted(600)
    first, same_seed, other_seed = (fit(x, 48, batch_size=256, seed=seed).factors.directions for seed in (0, 0, 1))
    assert torch.equal(first, same_seed) and not torch.equal(first, other_seed)


def test_factor_is_close_to_vectors_with_large_weights():
    """With two groups of vectors and one factor, the factor has the direction of the group with the larger weights."""
    is_first_group = torch.arange(600) % 2 == 0
    x = torch.where(is_first_group[:, None], torch.tensor([2.0, 0.5]), torch.tensor([0.5, 2.0])) + 0.01 * torch.randn(
        600, 2
    )
    for is_heavy, axis in ((is_first_group, 0), (~is_first_group, 1)):
        factors = fit(x, 1, l1=0.1, batch_size=100, weight=torch.where(is_heavy, 1.0, 0.001)).factors
        assert factors.directions[0, axis] > 0.96
    even = fit(x, 1, l1=0.1, batch_size=100, weight=torch.full((600,), 7.0)).factors.directions
    assert (even - 0.5**0.5).abs().max() < 0.05
    torch.testing.assert_close(even, fit(x, 1, l1=0.1, batch_size=100).factors.directions, atol=1e-4, rtol=1e-4)


@pytest.fixture
def misplaced_start(monkeypatch):
    """Vectors and their planted directions; the first 20 initial directions of fits are orthogonal to all vectors."""
    initial = FactorFitter._initial_directions

    def begin(fitter, x):
        start = initial(fitter, x)
        start[:20] = torch.eye(40)[32:].repeat(3, 1)[:20]
        return start

    monkeypatch.setattr(FactorFitter, "_initial_directions", begin)
    return [torch.nn.functional.pad(part, (0, 8)) for part in planted(16_000)]


def test_dead_factors_are_replaced(misplaced_start, monkeypatch):
    x, directions = misplaced_start
    replaced = fit(x, N_FACTORS, batch_size=256)
    assert replaced.history["n_dead"].max() >= 16 and replaced.history["n_dead"].iloc[-1] == 0
    assert recovered_share(directions, replaced.factors.directions) >= 0.95
    monkeypatch.setattr(FactorFitter, "_replace_dead", lambda *_: None)
    not_replaced = fit(x, N_FACTORS, batch_size=256)
    assert not_replaced.history["n_dead"].iloc[-1] == 20
    assert recovered_share(directions, not_replaced.factors.directions) < 0.8


def test_resuming_does_not_change_when_dead_factors_are_replaced(misplaced_start, tmp_path):
    x, _ = misplaced_start
    uninterrupted = fit(x[:2000], N_FACTORS, batch_size=256)
    assert uninterrupted.history["n_dead"].max() > 0
    fit(x[:520], N_FACTORS, batch_size=256).save(tmp_path)
    resumed = FactorFitter.load(tmp_path)
    resumed.update(x[520:2000])
    assert resumed.history.equals(uninterrupted.history)
    assert torch.equal(resumed.factors.directions, uninterrupted.factors.directions)


def test_initial_directions_are_distinct():
    """The same embedding occurs many times; it becomes one factor."""
    x = torch.randn(6, 16).repeat(50, 1)
    start = FactorFitter(16, 6)._initial_directions(x)
    assert ((start @ unit(x[:6]).T) > 0.999).sum(0).tolist() == [1] * 6


def test_large_penalty_gives_no_active_codes():
    x, _ = planted(2000)
    fitter = fit(x, 48, l1=1e4, batch_size=256)
    assert fitter.history["n_active"].max() == 0
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(48))


def test_zero_vectors_do_not_become_factors():
    fitter = fit(torch.zeros(600, 4), 8, batch_size=256)
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(8))
    assert fitter.history["explained_variance"].isna().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_input_gives_the_factors_of_its_float32_values(dtype):
    x, _ = planted(300)
    fitter = fit(x.to(dtype), 48, batch_size=256)
    assert fitter.factors.directions.dtype == torch.float32
    assert torch.equal(fitter.factors.directions, fit(x.to(dtype).float(), 48, batch_size=256).factors.directions)


def test_history_is_a_tidy_table_with_correct_measures(fitted):
    fitter, _ = fitted
    check_tidy(fitter.history, ["n_vectors"], MEASURES)
    check_tidy(FactorFitter(4, 8).history, ["n_vectors"], MEASURES)
    x, _ = planted(256)
    fitter = fit(x, 48, batch_size=256)
    first = fitter.history.iloc[0]
    start = FactorFitter(32, 48, l1=0.2, batch_size=256)._initial_directions(x)
    codes = sparse_codes(x, start, 0.2, gap=1e-6).codes
    unexplained = (x - codes @ start).square().sum()
    assert first["objective"] == pytest.approx(float(unexplained / 2 + 0.2 * codes.sum()) / 256, rel=2e-3)
    assert first["explained_variance"] == pytest.approx(
        float(1 - unexplained / (x - x.mean(0)).square().sum()), abs=2e-3
    )
    assert first["n_vectors"] == 256 and first["n_active"] == pytest.approx(float((codes > 0).sum()) / 256, rel=0.05)


def test_factors_do_not_change_after_later_steps():
    fitter = FactorFitter(4, 8)
    torch.testing.assert_close(fitter.factors.directions.norm(dim=1), torch.ones(8))
    directions_before = fitter.factors.directions
    fitter.update(torch.randn(1024, 4))
    assert not torch.equal(directions_before, fitter.factors.directions), "factors are a copy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 5),), "width 5, but the dictionary's residual stream has d_model=4"),
        ((torch.ones(4),), r"shape \(4,\)"),
        ((torch.tensor([[1.0, float("nan"), 0, 0]]),), "NaN or infinite values in hidden states"),
        ((torch.ones(3, 4), torch.ones(2)), r"weight has shape \(2,\). Expected \[3\]"),
        ((torch.ones(1, 4), torch.tensor([-1.0])), "weight contains negative"),
        ((torch.ones(1, 4), torch.tensor([float("nan")])), "weight contains negative, NaN"),
        ((["no"],), "cannot be made a tensor"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_invalid_hidden_states_are_refused(arguments, message):
    fitter = FactorFitter(4, 8)
    with pytest.raises(EmbspaceError, match=message):
        fitter.update(*arguments)
    assert fitter.n_waiting == 0


@pytest.mark.parametrize(
    "options", [{"d_model": 0}, {"n_factors": 2.5}, {"l1": 0}, {"l1": -1.0}, {"seed": -1}, {"batch_size": 0}]
)
@pytest.mark.usefixtures("unchecked_types")
def test_invalid_settings_are_refused(options):
    with pytest.raises(EmbspaceError, match=next(iter(options))):
        FactorFitter(**({"d_model": 4, "n_factors": 8} | options))


def test_saved_fit_resumes_bit_for_bit(tmp_path):
    x, _ = planted(1500)
    uninterrupted = fit(x, 48, batch_size=256)
    interrupted = fit(x[:700], 48, batch_size=256)
    interrupted.save(tmp_path / "fit")
    resumed = FactorFitter.load(tmp_path / "fit")
    assert (resumed.n_seen, resumed.n_waiting) == (512, 188)
    assert repr(resumed) == "FactorFitter(48 factors, d_model 32, l1 0.2; 512 vectors seen)"
    resumed.update(x[resumed.n_seen + resumed.n_waiting :])
    assert torch.equal(resumed.factors.directions, uninterrupted.factors.directions)
    assert resumed.history.equals(uninterrupted.history)


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


@pytest.mark.full
def test_killed_fit_resumes_bit_for_bit(tmp_path):
    """SIGKILL at an arbitrary moment, while the fit saves after every update, loses no saved update."""
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
    n_parts, remainder = divmod(resumed.n_seen + resumed.n_waiting, 150)
    assert remainder == 0 and n_parts >= 9, "all saved updates are complete"
    uninterrupted = FactorFitter(37, 60, l1=0.2, batch_size=200)
    for part in range(n_parts + 6):
        x = torch.randn(150, 37, generator=torch.Generator().manual_seed(part))
        uninterrupted.update(x)
        if part >= n_parts:
            resumed.update(x)
    assert torch.equal(resumed.factors.directions, uninterrupted.factors.directions)
    assert resumed.history.equals(uninterrupted.history)


def test_full_disk_leaves_saved_files_unchanged(tmp_path, monkeypatch):
    x, _ = planted(600)
    fitter = fit(x, 48, batch_size=256)
    fitter.save(tmp_path)
    fitter.factors.save(tmp_path / "factors")
    saved = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail_after_half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    fitter.update(x)
    monkeypatch.setattr(files.Path, "write_bytes", fail_after_half)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fitter.save(tmp_path)
    with pytest.raises(EmbspaceError, match="No space left on device"):
        fitter.factors.save(tmp_path / "factors")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == saved
