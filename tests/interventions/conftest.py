"""Models for the tests of interventions."""

import pytest
import zoo


@pytest.fixture(scope="module")
def models(tiny):
    booted = {}

    def get(name):
        if name in zoo.UNAVAILABLE or (name.startswith("ht_") and name not in zoo.HT_ZOO):
            pytest.skip("this TransformerLens has no such model")
        if name in zoo.ZOO:
            return tiny(name)
        if name not in booted:
            booted[name] = (zoo.NATIVE | zoo.HT_ZOO)[name]()
        return booted[name]

    return get
