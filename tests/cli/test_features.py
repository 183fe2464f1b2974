"""The command `embspace-lens features explore`."""

import pytest
import torch
from command_line import check_refusal

from embspace_lens import demo
from embspace_lens.features import Features

needs_demo = pytest.mark.skipif(
    "reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout"
)


def save_dictionary(folder, name, hook, n=5):
    generator = torch.Generator().manual_seed(0)
    decoder, encoder = torch.randn(n, 32, generator=generator), torch.randn(32, n, generator=generator)
    return Features(decoder, encoder, name=name, hook=hook, layer=int(hook.split(".")[1])).save(folder / name)


def test_dictionaries_of_a_model_become_a_site(run, folder, tmp_path):
    pytest.importorskip("jinja2", reason="the site needs jinja2")
    paths = [save_dictionary(tmp_path, f"d{layer}", f"blocks.{layer}.hook_resid_post") for layer in (0, 2)]
    options = [part for path in paths for part in ("--features", path)]
    result = run("features", "explore", "site", *options, model=folder)
    assert result.exit_code == 0 and "site: 10 features" in result.stdout, result.output
    assert '["d0",0,5,"blocks.0.hook_resid_post"],["d2",5,5,' in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_features_are_given_or_those_of_the_demo(run):
    message = r".*Give --features PATH, or --demo for the demo model's dictionaries, but not both\."
    check_refusal(run("features", "explore"), message)
    check_refusal(run("features", "explore", "--demo", "--features", "x"), message)


@pytest.mark.full
@needs_demo
def test_demo_becomes_a_site(run, tmp_path, monkeypatch):
    pytest.importorskip("jinja2", reason="the site needs jinja2")
    monkeypatch.setattr("embspace_lens.forward.sampling.sample_texts", lambda model: ["A good film.", "I left."])
    result = run("features", "explore", "--demo", "site")
    assert result.exit_code == 0 and "1,500 features" in result.stdout, result.output
    about = (tmp_path / "site" / "about.html").read_text("utf-8")
    assert "sampled from the model" in about and "transcoder-3: 500 features" in about
