"""Singular directions compared with a dense decomposition."""

import numpy as np
import torch


def test_singular_values_equal_those_of_the_dense_circuit(lens):
    for name in ("W_OV", "W_QK"):
        form = getattr(lens.weights, name)(0)
        dense = form.A[1].double() @ form.B[1].double()
        expected = torch.linalg.svdvals(dense)[:8]
        table = lens.singular(layer=0, head=1, weight=name, n_directions=8, k=1)
        np.testing.assert_allclose(table["singular_value"].unique(), expected, rtol=1e-3)
        assert (table.loc[table["side"] == {"W_OV": "write", "W_QK": "key"}[name], "score"] > 0).all()
