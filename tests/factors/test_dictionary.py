"""Factors: codes, and files that can be read again or are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from embspace_lens.errors import EmbspaceError
from embspace_lens.factors import FactorFitter, Factors, fitter, sparse_codes


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.fixture
def factors():
    return Factors(unit(torch.randn(20, 6)), l1=0.25)


@pytest.mark.usefixtures("unchecked_types")
def test_encode_and_decode_keep_the_batch_shape(factors):
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
    with pytest.raises(EmbspaceError, match="the dictionary has 20 factors"):
        factors.decode(torch.ones(2, 19))
    with pytest.raises(EmbspaceError, match="NaN"):
        Factors(torch.full((2, 2), float("nan")), 0.1)
    with pytest.raises(EmbspaceError, match="l1=0"):
        Factors(torch.eye(2), 0)
    with pytest.raises(EmbspaceError, match="Expected \\[n_factors, d_model\\]"):
        Factors(torch.ones(2), 0.1)
    with pytest.raises(AttributeError):
        factors.l1 = 1.0


def test_load_returns_what_save_wrote(factors, tmp_path):
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


def test_damaged_and_other_files_are_refused(factors, tmp_path):
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
    with pytest.raises(EmbspaceError, match="has architecture None. Expected 'transformer_factors'"):
        Factors.load(tmp_path)
    for tensors, l1 in (
        ({"W_enc": torch.eye(2)}, "0.1"),
        ({"W_dec": torch.eye(2)}, "x"),
        ({"W_dec": torch.ones(2)}, "1"),
    ):
        save_file(tensors, path, metadata={"architecture": "transformer_factors", "l1": l1})
        with pytest.raises(EmbspaceError, match="does not contain a complete dictionary"):
            Factors.load(tmp_path)
    with pytest.raises(EmbspaceError, match="does not exist"):
        FactorFitter.load(tmp_path)
    FactorFitter(4, 8).save(tmp_path / "fit")
    state = tmp_path / "fit" / fitter.STATE
    tensors = load_file(state)
    save_file(tensors | {"A": torch.eye(3)}, state, metadata={"architecture": fitter.KIND})
    with pytest.raises(EmbspaceError, match="does not contain a complete fit"):
        FactorFitter.load(tmp_path / "fit")
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(EmbspaceError, match="The folder .* cannot be created"):
        factors.save(file)


def test_export_has_the_layout_of_saelens(factors, tmp_path):
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
    with pytest.raises(EmbspaceError, match="Expected 'transformer_factors'"):
        Factors.load(tmp_path)
    square = Factors(torch.eye(6), 0.25)  # for orthogonal directions the export is exact
    square.to_saelens(tmp_path)
    sae = load_file(tmp_path / "sae_weights.safetensors")
    x = torch.randn(5, 6)
    torch.testing.assert_close(torch.relu(x @ sae["W_enc"] + sae["b_enc"]), square.encode(x), atol=1e-4, rtol=1e-4)


def test_export_loads_in_saelens(factors, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    factors.to_saelens(tmp_path)
    sae = sae_lens.SAE.load_from_disk(tmp_path)
    x = torch.randn(5, 6)
    torch.testing.assert_close(sae.encode(x), torch.relu(x @ factors.directions.T - 0.25))
