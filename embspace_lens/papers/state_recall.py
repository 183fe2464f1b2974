"""Paper A, hidden states: their top tokens are among those of the most active parameters."""

from typing import Any

from ..evidence.recall import hidden_state_recall
from ..forward.texts import read_texts
from ..plots.evidence_curves import plot_recall
from .data_files import TEST, data_file
from .experiment import Experiment, Findings, Setting, figures
from .raw_lens import LENS, raw_lens

NAME = "A:hidden-states"
N_TEXTS = 100
PUBLISHED = {
    ("layer", "W_in"): (0.056, 0.024),
    ("layer", "W_out"): (0.171, 0.088),
    ("layer", "W_V"): (0.041, 0.037),
    ("layer", "W_O"): (0.097, 0.084),
    ("final", "W_in"): (0.046, 0.029),
    ("final", "W_out"): (0.188, 0.126),
    ("final", "W_V"): (0.039, 0.037),
    ("final", "W_O"): (0.132, 0.120),
}
NAN = (float("nan"), float("nan"))


def run(setting: Setting) -> Findings:
    """Measure the recall on test reviews."""
    lens = raw_lens(setting.model)
    texts = read_texts(data_file(setting, "reviews"), where=TEST)[: setting.size(N_TEXTS, 2)]
    table: Any = hidden_state_recall(lens, texts, final_norm=True, k=min(50, lens.space.n_tokens))
    rows = []
    for (target, weight), part in table.groupby(["target", "weight"], observed=True):
        means = part.groupby("sample")["recall"].mean()
        published, published_control = PUBLISHED.get((str(target), str(weight)), NAN)
        rows.append(
            {
                "measure": f"{weight}, {'final state' if target == 'final' else 'state of the same layer'}",
                "value": means["aligned"],
                "control": means["permuted"],
                "published": published,
                "published_control": published_control,
                "n": int(part["n"].iloc[0]),
            }
        )
    return Findings(
        figures(NAME, setting, rows),
        plot=lambda: plot_recall(table),
        notes=(
            f"Measured on {len(texts)} test reviews; the published figures are means over the 24 layers of GPT-2 medium.",
        ),
    )


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Hidden states recall their parameters",
        source="Dar et al. (2023), §4.2",
        protocol=(
            "For each token, the union of the top 50 tokens of its 5 most active parameters, and the share of the top 50 tokens of the hidden state "
            f"(behind the final norm with its bias) that are in it ({LENS}); a mean over tokens, then over layers. Control: permuted tokens."
        ),
        run=run,
        demo_scale=0.5,
        models=("reviews-small-0", "reviews-medium-0"),
        needs=("reviews",),
    )
]
