"""Paper A, alignment: layers and neurons of two models of one vocabulary, compared in embedding space."""

from typing import Any

from ..compare.alignment import Alignment, align
from ..compare.neuron_matching import match_neurons
from ..lens import EmbeddingLens
from ..plots.alignment_maps import plot_alignment
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import LENS, legible_lens, raw_lens, two_models

NAME = "A:alignment"
PUBLISHED = {
    "W_in": (10, 2),
    "W_out": (10, 3),
    "W_K": (7, 1),
    "W_Q": (2, 0),
    "W_V": (12, 1),
    "W_O": (9, 2),
}
PUBLISHED_LAYERS = 12
NAN = (float("nan"), float("nan"))


def run(setting: Setting) -> Findings:
    """Align the two models with raw weights, with folded norms, and in residual space."""
    names = two_models(NAME, setting)
    raw = [raw_lens(name) for name in names]
    folded = [EmbeddingLens.from_pretrained(name) for name in names]
    by_lens = {"": _both_spaces(*raw), ", norms folded": _both_spaces(*folded)}
    rows, tables = [], {}
    for suffix, (aligned, baseline) in by_lens.items():
        counts = count_layers(aligned)
        control = counts * float("nan") if baseline is None else count_layers(baseline)
        for how in ("assigned", "nearest"):
            for weight in counts.index:
                published = [n / PUBLISHED_LAYERS for n in PUBLISHED[weight]] if weight in PUBLISHED else list(NAN)
                shown = published if how == "assigned" and not suffix else list(NAN)
                rows.append(
                    {
                        "measure": f"{weight}{suffix}: layers {how} to their own number",
                        "value": counts.loc[weight, how] / counts.loc[weight, "n_layers"],
                        "control": control.loc[weight, how] / control.loc[weight, "n_layers"],
                        "published": shown[0],
                        "published_control": shown[1],
                        "n": int(counts.loc[weight, "n_layers"]),
                    }
                )
            rows.append(
                {
                    "measure": f"all weights{suffix}: layers {how} to their own number, a count",
                    "value": counts[how].sum(),
                    "control": control[how].sum(skipna=False),
                    "n": int(counts["n_layers"].sum()),
                }
            )
        tables[f"Mean absolute correlation of the layers of the same number, and chance{suffix}"] = (
            aligned.on_diagonal()
        )
    rows += _neuron_rows(names)
    aligned = by_lens[""][0]
    return Findings(
        figures(NAME, setting, rows),
        tables,
        lambda: plot_alignment(aligned),
        (
            "The published shares are those of two MultiBERTs of 12 layers, with the one-to-one assignment.",
            "A one-to-one assignment uses all layers, so it can be the diagonal although the nearest layer is often another one.",
        ),
    )


def _both_spaces(a: EmbeddingLens, b: EmbeddingLens) -> tuple[Alignment, Alignment | None]:
    """The alignment in embedding space and in residual space; models of different widths have no common residual space."""
    is_comparable = a.weights.d_model == b.weights.d_model
    return align(a, b), align(a, b, space="residual") if is_comparable else None


def count_layers(alignment: Alignment) -> Any:
    """For each weight, how many layers of the first model are nearest, and assigned, to the layer of the same number."""
    counts = alignment.on_diagonal().set_index("weight")
    return counts.assign(nearest=counts["n_nearest"], assigned=counts["n_matched"])


def _neuron_rows(names: tuple[str, str]) -> list[dict[str, object]]:
    """How similar each neuron of the last layer is to its nearest partner, with the first layer as the control."""
    a, b = (legible_lens(name) for name in names)
    layer_a, layer_b = a.weights.n_layers - 1, b.weights.n_layers - 1
    value, wrong = (match_neurons(a, b, layer_a, layer, one_to_one=False)["correlation"] for layer in (layer_b, 0))
    rows: list[dict[str, object]] = [
        {
            "measure": f"neurons of layer {layer_a}: mean correlation with the nearest of layer {layer_b}, control layer 0",
            "value": value.mean(),
            "control": wrong.mean(),
            "n": len(value),
        }
    ]
    if a.weights.d_model == b.weights.d_model:
        residual = match_neurons(a, b, layer_a, layer_b, space="residual", one_to_one=False)["correlation"]
        rows.append(
            {
                "measure": f"neurons of layer {layer_a}: the same, control residual space",
                "value": value.mean(),
                "control": residual.mean(),
                "n": len(value),
            }
        )
    return rows


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Layers and neurons of two seeds",
        source="Dar et al. (2023), §5.1",
        protocol=(
            f"The mean absolute correlation over tokens of all vectors of two layers ({LENS}); the share of layers whose one-to-one assignment, or whose "
            "nearest layer, has the same number. Control: the same with the coordinates of the raw vectors. Neurons: W_out, words by cosine, norms folded."
        ),
        run=run,
        models=("reviews-small-0,reviews-small-1",),
    )
]
