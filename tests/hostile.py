"""Texts that can break or spoof a page, as contexts of factors."""

import numpy as np

from embspace_lens.factors import Activity
from embspace_lens.tables.frames import tidy

HOSTILE = [
    "<script>document.body.dataset.broken='1'</script> </script> <img src=x onerror=document.body.dataset.broken='1'>",
    "שלום עולם مرحبا بالعالم \u202egnp.exe",
    "🏳️‍🌈 👩‍👩‍👧 é \u0301 \x00 \x1b[31m \u2028 \u2029",
    "long " * 10_000,
    "",
    " ",
    "'\"&amp;\\u003cb\\u003e\\",
]


def hostile_activity(factors, layers=(0, 1)):
    """An `Activity` in which the contexts and targets of every factor and layer are hostile texts."""
    blocks = [
        (factor, layer, rank, text)
        for factor in range(factors.n_factors)
        for layer in layers
        for rank, text in enumerate(HOSTILE)
    ]
    columns = ["factor", "layer", "rank", "token_index", "token_string", "example", "pos", "code", "before", "after"]
    factor, layer, rank, text = (np.array(part, dtype=object) for part in zip(*blocks))
    contexts = tidy(
        columns,
        [
            {
                "factor": factor.astype(int),
                "layer": layer.astype(int),
                "rank": rank.astype(int),
                "token_index": rank.astype(int),
                "token_string": text,
                "example": rank.astype(int),
                "pos": rank.astype(int),
                "code": 9.0 - rank.astype(float),
                "before": text,
                "after": text[::-1],
            }
        ],
    )
    n = factors.n_factors * len(layers)
    importance = tidy(
        ["factor", "layer", "importance"],
        [{"factor": np.repeat(np.arange(factors.n_factors), len(layers)), "layer": np.tile(layers, factors.n_factors), "importance": np.linspace(1, 2, n)}],
    )  # fmt: skip
    measures = tidy(
        ["layer", "n_vectors", "objective", "explained_variance", "n_active"],
        [{"layer": np.array(layers), "n_vectors": np.array([7] * len(layers)), "objective": np.ones(len(layers)), "explained_variance": np.ones(len(layers)), "n_active": np.ones(len(layers))}],
    )  # fmt: skip
    return Activity(importance, measures, contexts)
