"""The strongest direct weights between two dictionaries of features, compared with tiled brute force.

`make bench` runs it with the others. This one alone: `PYTHONPATH=. python tests/benchmarks/bench_features.py [N] [D_MODEL]`.
"""

import sys
from collections.abc import Iterator

import torch
from brute_force import tiled_pairs
from measuring import Measurement, compare, print_header, print_measurement
from torch import Tensor
from torch.nn.functional import normalize

from embspace_lens.features.dictionary import Features
from embspace_lens.features.feature_pairs import virtual_weights

SHARE = 16  # brute force is timed on one sixteenth of the source, and its time multiplied by it


def structured(n: int, d_model: int, *, norms: bool) -> tuple[Tensor, Tensor]:
    """Two dictionaries as those of trained models: features in clusters, and a spectrum that decays.

    Each row is 0.7 times one of n / 16 centres, plus noise. Both have the standard deviation i^-0.5 in the i-th direction of one
    random basis. Rows are scaled to norm 1; with `norms`, those of the second dictionary are multiplied by a log-normal factor
    (sigma 0.3), as encoders of transcoders have different norms.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d_model + 1).float().rsqrt()
    centres = torch.randn(n // 16, d_model, generator=generator) * scale
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q

    def rows() -> Tensor:
        cluster = torch.randint(len(centres), (n,), generator=generator)
        noise = torch.randn(n, d_model, generator=generator) * scale
        return normalize(0.7 * centres[cluster] + noise, dim=1) @ basis

    decoder, encoder = rows(), rows()
    factor = torch.exp(0.3 * torch.randn(n, 1, generator=generator)) if norms else 1
    return decoder, encoder * factor


def unstructured(n: int, d_model: int) -> tuple[Tensor, Tensor]:
    """Two dictionaries of random unit rows, the worst case: no pair can be excluded by less than its product."""
    generator = torch.Generator().manual_seed(0)
    decoder, encoder = (normalize(torch.randn(n, d_model, generator=generator), dim=1) for _ in range(2))
    return decoder, encoder


def bench_features(n: int = 65536, d_model: int = 768, k: int = 100) -> Iterator[Measurement]:
    """The best k direct weights of n × n features, compared with brute force on a part of the source."""
    cases = {
        "structured": lambda: structured(n, d_model, norms=True),
        "structured, norms 1": lambda: structured(n, d_model, norms=False),
        "unstructured": lambda: unstructured(n, d_model),
    }
    for name, make in cases.items():
        decoder, encoder = make()
        source, target = Features(decoder, name="source"), Features(encoder, encoder.T, name="target")
        eye = torch.eye(d_model)
        row = compare(
            f"features, {name}: best {k} of {n} × {n} × {d_model}, next to tiled brute force (from 1/{SHARE} of it)",
            lambda source=source, target=target: virtual_weights(source, target, k=k),
            lambda A=decoder[::SHARE], B=encoder, eye=eye: tiled_pairs(A, eye, eye, B, k),
            repeats=1,
        )
        yield row._replace(baseline=SHARE * row.baseline, ratio=SHARE * row.ratio)


def main(n: str = "65536", d_model: str = "768") -> None:
    """Print each measurement as soon as it is made."""
    print_header()
    for row in bench_features(int(n), int(d_model)):
        print_measurement(row)


if __name__ == "__main__":
    main(*sys.argv[1:])
