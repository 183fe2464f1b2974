"""The texts and word lists of the data folder."""

from pathlib import Path

from .. import errors
from .experiment import Experiment, Setting

PATTERNS: dict[str, tuple[str, ...]] = {
    "reviews": ("reviews.*", "imdb.*"),
    "relations": ("relations",),
    "sentiment": ("sentiment",),
    "brown": ("brown_tagged.parquet",),
}
"""File names by need, the first match counts; another need is the beginning of a file name."""
DESCRIPTIONS = {
    "reviews": "labelled movie reviews, reviews.jsonl with `split`, `label` and `text`",
    "relations": "a folder relations/ of JSON lists of pairs of words",
    "sentiment": "a folder sentiment/ with opinion_positive.txt and opinion_negative.txt",
    "brown": "the tagged Brown corpus, brown_tagged.parquet with `file`, `sentence`, `position`, `word` and `tag`",
}
TEST, TRAIN = "split == 'test'", "split == 'train' and label != 'unsup'"


def find_file(data: Path | None, need: str) -> Path | None:
    """The file or folder that an experiment needs; None if it is absent."""
    if data is None:
        return None
    matches = [path for pattern in PATTERNS.get(need, (f"{need}*",)) for path in sorted(data.glob(pattern))]
    return matches[0] if matches else None


def data_file(setting: Setting, need: str) -> Path:
    """The file or folder that an experiment needs.

    Raises:
        EmbspaceError: If it is absent.
    """
    path = find_file(setting.data, need)
    if path is None:
        raise errors.missing_data(need, DESCRIPTIONS.get(need, f"a file {need}.*"), setting.data)
    return path


def missing_needs(experiment: Experiment, data: Path | None) -> list[str]:
    """The needs of an experiment that the data folder does not meet."""
    return [need for need in experiment.needs if find_file(data, need) is None]
