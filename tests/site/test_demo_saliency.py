"""The saliency that comes with the demo's factors belongs to the texts that the demo model samples."""

import pytest
import zoo

from embspace_lens import demo
from embspace_lens.factors import activity, demo_factors
from embspace_lens.factors.pretrained import demo_saliency
from embspace_lens.forward import sample_texts
from embspace_lens.site.context_saliency import N_SAVED, peak_saliency
from embspace_lens.site.demo_saliency import N_FACTORS
from embspace_lens.site.site_data import SiteData


@pytest.mark.full
@pytest.mark.skipif(zoo.HookedTransformer is not None, reason="it was computed with TransformerLens 4")
@pytest.mark.skipif("reviews-small-0" not in demo.names(), reason="the demo models are not in this checkout")
def test_every_context_of_the_first_factors_has_saliency():
    model, factors = demo.load("reviews-small-0"), demo_factors()
    texts = sample_texts(model)
    result = activity(factors, model, texts, layers=range(4))
    table = peak_saliency(factors, model, texts, result, 0, checkpoint=demo_saliency())
    first = SiteData(factors, result, None, None, None).order[:N_FACTORS]
    assert set(table["factor"]) == set(first)
    assert len(table.drop_duplicates(["factor", "rank"])) == N_FACTORS * N_SAVED
