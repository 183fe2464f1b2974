"""Sparse dictionaries in training: recovery of planted features, thresholds, features without activity, folding."""

import pytest
import torch

from embspace_lens.demo.sparse_dictionary import SparseDictionary, planned_rate

N_PLANTED, D_IN, D_OUT, ACTIVE = 32, 24, 20, 2


def planted(n, seed, is_sae):
    """Sparse non-negative sums of unit vectors, shifted and scaled, and the directions that each code reads and writes."""
    directions = torch.Generator().manual_seed(0)
    reading = torch.nn.functional.normalize(torch.randn(N_PLANTED, D_IN, generator=directions), dim=1)
    writing = torch.nn.functional.normalize(torch.randn(N_PLANTED, D_OUT, generator=directions), dim=1)
    generator = torch.Generator().manual_seed(seed)
    best, index = torch.rand(n, N_PLANTED, generator=generator).topk(ACTIVE, dim=1)
    codes = torch.zeros(n, N_PLANTED).scatter_(1, index, best + 0.5)
    x = 3 * codes @ reading + 5
    return (x, x, reading) if is_sae else (x, 7 * codes @ writing - 2, writing)


def fit(dictionary, n_steps, is_sae, batch=512):
    optimizer = torch.optim.Adam([p for p in dictionary.parameters() if p.requires_grad], betas=(0.9, 0.99))
    losses = []
    for step in range(n_steps):
        x, y, _ = planted(batch, step + 1, is_sae)
        if step == 0:
            dictionary.standardise(x, y)
        for group in optimizer.param_groups:
            group["lr"] = planned_rate(step, n_steps, 1e-2)
        evaluated = dictionary(x, y)
        evaluated.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dictionary.update(evaluated, batch, step)
        losses.append(float(evaluated.unexplained))
    return losses


def best_cosines(dictionary, directions):
    return (directions @ dictionary.W_dec.detach().T).max(dim=1).values


@pytest.mark.parametrize("is_sae", [True, False], ids=["sae", "transcoder"])
def test_training_recovers_a_planted_dictionary(is_sae):
    width = D_IN if is_sae else D_OUT
    dictionary = SparseDictionary(D_IN, width, 48, ACTIVE, seed=3, is_sae=is_sae, dead_after=10_000)
    directions = planted(1, 0, is_sae)[2]
    assert best_cosines(dictionary, directions).median() < 0.7, "not recovered by chance"
    losses = fit(dictionary, 600, is_sae)
    assert losses[-1] < 0.1 * losses[0]
    assert (best_cosines(dictionary, directions) > 0.9).float().mean() > 0.9


def test_mean_number_of_active_features_is_k():
    dictionary = SparseDictionary(D_IN, D_IN, 48, 5, seed=0, is_sae=True)
    fit(dictionary, 300, is_sae=True)
    x = planted(4096, 999, True)[0]
    tensors = dictionary.folded(torch.float32)
    h = (x @ tensors["W_enc"] + tensors["b_enc"]).relu()
    assert 4.5 < (h > tensors["threshold"]).sum(1).float().mean() < 5.5
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("is_sae", [True, False], ids=["sae", "transcoder"])
def test_folded_tensors_give_the_same_output_as_the_standardised_dictionary(is_sae):
    width = D_IN if is_sae else D_OUT
    dictionary = SparseDictionary(D_IN, width, 48, 4, seed=0, is_sae=is_sae).double()
    x, y, _ = planted(200, 1, is_sae)
    x, y = x.double(), y.double()
    dictionary.standardise(x, y)
    with torch.no_grad():
        dictionary.b_enc.normal_()
        dictionary.b_dec.normal_()
        dictionary.threshold.fill_(0.4)
        h = ((x - dictionary.input_mean) / dictionary.input_scale @ dictionary.W_enc + dictionary.b_enc).relu()
        expected = (h * (h > 0.4)) @ dictionary.W_dec + dictionary.b_dec
        expected = expected * dictionary.output_scale + dictionary.output_mean
    t = dictionary.folded(torch.float64)
    codes = (x @ t["W_enc"] + t["b_enc"]).relu()
    output = (codes * (codes > t["threshold"])) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


def test_auxiliary_loss_changes_the_gradient_of_dead_features_alone():
    dictionary = SparseDictionary(D_IN, D_IN, 48, 2, seed=0, is_sae=True, dead_after=100)
    x, y, _ = planted(256, 1, True)
    dictionary.standardise(x, y)

    def gradient():
        dictionary.zero_grad()
        evaluated = dictionary(x, y)
        evaluated.loss.backward()
        return float(evaluated.loss.detach() - evaluated.unexplained), dictionary.W_dec.grad.clone()

    without, plain = gradient()
    dictionary.since_active.data[:8] = 1000
    auxiliary, grad = gradient()
    assert without == 0 < auxiliary
    assert ((grad - plain).abs().sum(1) > 1e-7).tolist() == [True] * 8 + [False] * 40


def test_evaluating_a_batch_changes_nothing():
    dictionary = SparseDictionary(D_IN, D_IN, 48, 2, seed=0, is_sae=True)
    before = {name: p.clone() for name, p in dictionary.named_parameters()}
    dictionary(*planted(64, 1, True)[:2])
    assert all(torch.equal(p, before[name]) for name, p in dictionary.named_parameters())
