"""Classifiers of several seeds, tuned from a demo model when they are needed, and kept in the folder of runs."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from .. import errors
from ..demo import catalog
from ..demo.tune import main as tune
from ..files import make_folder
from .data_files import TRAIN, data_file
from .experiment import Setting

N_TEXTS = 3000


def tuned_classifier(base: str, setting: Setting, seed: int, n_blocks: int) -> Path:
    """The folder of a classifier of reviews; an interrupted tuning resumes.

    Args:
        base: The demo model that is tuned.
        setting: Where the reviews and the classifiers are; its scale is the share of the paper's 3,000 reviews.
        seed: The seed of the tuning.
        n_blocks: How many last blocks are tuned.

    Raises:
        EmbspaceError: If the base is not a demo model, or there are no reviews.
    """
    if base not in catalog.names() or catalog.is_classifier(base):
        raise errors.other_model_needed("tuning", base, "a demo model as the donor's base")
    reviews = data_file(setting, "reviews")
    n_texts = setting.size(N_TEXTS, 8)
    name = f"{base}-{n_blocks}-blocks-{n_texts}-of-{reviews.stat().st_size}-seed-{seed}"
    folder = make_folder(setting.folder / "classifiers" / name)
    if not catalog.is_classifier(folder):
        with redirect_stdout(sys.stderr):
            tune(
                base,
                reviews,
                folder,
                where=TRAIN,
                corpus="labelled reviews of the data folder",
                seed=seed,
                n_blocks=n_blocks,
                n_texts=n_texts,
                device="cpu",
            )
    return folder
