"""A site about the factors of a tiny model."""

import pytest
import torch
import zoo

from embspace_lens.factors import Factors, activity
from embspace_lens.site import explore

TEXTS = ["w2 w3 w4 w5 w6", "w7 w8", "", "w9 w10 w11 w12 w13 w14 w15 w16", "w3 w4", "w3 w3 w3 w5"]


@pytest.fixture(scope="session")
def factors():
    torch.manual_seed(0)
    return Factors(torch.nn.functional.normalize(torch.randn(12, zoo.D_MODEL), dim=1), l1=0.2)


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def activity_result(tiny, factors):
    return activity(factors, tiny("gpt2"), TEXTS, n=3, n_contexts=4)


@pytest.fixture(scope="session")
def site(tiny, factors, activity_result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    return explore(
        factors, folder, model=tiny("gpt2"), seen=activity_result, title="tiny", about={"Texts": "six <lines>"}
    )


@pytest.fixture(scope="session")
def hostile_site(factors, tmp_path_factory):
    """A site in which every text contains HTML or special characters."""
    from hostile import HOSTILE, hostile_activity

    three_factors = Factors(factors.directions[:3], l1=0.2)
    folder = tmp_path_factory.mktemp("hostile") / "pages"
    return explore(
        three_factors, folder, seen=hostile_activity(three_factors), title=HOSTILE[0], about={HOSTILE[0]: HOSTILE[0]}
    )
