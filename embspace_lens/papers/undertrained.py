"""Under-trained tokens: those that are found from embeddings alone, against how often tokens occur in training."""

from .. import errors
from ..demo import catalog
from ..lens import EmbeddingLens
from .experiment import Experiment, Findings, Setting, figures

NAME = "Magikarp:undertrained-tokens"


def run(setting: Setting) -> Findings:
    """Measure the share of never seen, and of often seen, tokens that the mask leaves out."""
    if setting.model not in catalog.names():
        raise errors.other_model_needed(
            NAME, setting.model, "a demo model, because it reads the counts of its training texts"
        )
    trained = _ids(EmbeddingLens.from_pretrained(setting.model, vocabulary="trained"))
    every = _ids(EmbeddingLens.from_pretrained(setting.model))
    seen, frequent = (_ids(EmbeddingLens.from_pretrained(setting.model, vocabulary=catalog.seen(n))) for n in (1, 10))
    never = every - seen
    row = {
        "measure": "tokens never seen that are left out, control tokens seen 10 times",
        "value": len(never - trained) / max(1, len(never)),
        "control": len(frequent - trained) / len(frequent),
        "n": len(never),
    }
    return Findings(figures(NAME, setting, [row]))


def _ids(lens: EmbeddingLens) -> set[int]:
    return set(lens.space.token_ids.tolist())


EXPERIMENTS = [
    Experiment(
        name=NAME,
        title="Under-trained tokens",
        source="Land & Bartolo (2024)",
        protocol=(
            'The share of tokens that never occur in the training texts and that `vocabulary="trained"` leaves out, from the embeddings alone. '
            "Control: the share of tokens that occur 10 times or more and are left out."
        ),
        run=run,
        models=("reviews-small-0", "reviews-small-1", "reviews-medium-0"),
    )
]
