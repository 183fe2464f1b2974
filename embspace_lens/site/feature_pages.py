"""The site of dictionaries of features: SAEs, transcoders, or transformer factors as features."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import errors
from ..display.html import environment
from ..display.tokens import visible
from ..features.dictionary import Features
from ..lens import EmbeddingLens
from ..tables.checks import check_integer
from .feature_activity import feature_activity
from .feature_data import FeatureData
from .site_files import about_lines, check_folder, write_site

PAGES = {
    "index.html": "index.html",
    "feature.html": "factor.html",
    "about.html": "about_features.html",
    "style.css": "style.css",
}
SCRIPTS = ("common.js", "overview.js", "feature.js", "factor.js")


def explore_features(
    features: Features | Sequence[Features],
    folder: str | os.PathLike[str],
    *,
    model: Any = None,
    texts: Any = None,
    lens: Any = None,
    n_contexts: int = 200,
    max_tokens: int | None = None,
    title: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a static site about features: an overview with a search, a page for each feature, and a page about the method.

    Each page shows what the feature reads and writes as tokens (`feature_labels`), its strongest virtual weights from and to the
    features of the other dictionaries, with links, the heads that move something into it and out of it, and the neurons that write
    and read it. All this is computed from weights. With texts, a page also shows the feature's contexts and codes.

    The pages open from disk. They load nothing from the network, and load the data of a feature when its page is opened.

    Args:
        features: One dictionary, or several of one model, between which virtual weights are computed.
        folder: The folder of the site; created if needed. An existing site there is replaced atomically.
        model: The model on which the dictionaries were trained. Needed to read texts; also makes the default lens.
        texts: The texts for contexts, as in `factors.activity`.
        lens: An EmbeddingLens; by default the lens of `model`. Its tokens and score are used for tokens; virtual weights are inner
            products whatever the score is.
        n_contexts: How many contexts of each feature, if texts are read.
        max_tokens: The maximum length of a text in tokens, if texts are read.
        title: The name of the model.
        about: More lines for the page about the method: label and text.

    Returns:
        The folder; open the `index.html` in it.

    Raises:
        EmbspaceError: If there is no lens, two dictionaries have one name, a dictionary has no encoder or another width, texts are
            given without a model, the folder contains other files or cannot be written, or jinja2 is not installed.

    Example:
        >>> from embspace_lens.features import Features
        >>> axes = Features(torch.eye(lens.weights.d_model)[:4], torch.eye(lens.weights.d_model)[:, :4], name="axes")
        >>> path = explore_features(axes, tmp_path / "features", lens=lens)
        >>> sorted(file.name for file in path.iterdir() if file.suffix == ".html")
        ['about.html', 'feature.html', 'index.html']

    References:
        Golimblevskaia et al. (2025), Circuit Insights (WeightLens). https://arxiv.org/abs/2510.14936
        Ameisen et al. (2025), Circuit Tracing, "Global Weights". https://transformer-circuits.pub/2025/attribution-graphs/methods.html
    """
    dictionaries = _check_dictionaries(features)
    n_contexts = check_integer("n_contexts", n_contexts, minimum=1)
    target = check_folder(folder)
    environment()  # raises if jinja2 is missing, before the forward passes
    if lens is None and model is None:
        raise errors.features_without_lens()
    lens = EmbeddingLens(model) if lens is None else lens
    activities = None
    if texts is not None:
        if model is None:
            raise errors.feature_texts_without_model()
        activities = feature_activity(dictionaries, model, texts, n_contexts=n_contexts, max_tokens=max_tokens)
    site_data = FeatureData(dictionaries, lens, activities)
    name = visible(title or lens.name)
    meta = {
        "name": name,
        "noun": "feature",
        "page": "feature.html",
        "salient": False,
        "dictionaries": [
            [visible(each.name), first, len(each), visible(_place(each))]
            for each, first in zip(dictionaries, site_data.first, strict=True)
        ],
        "chance": site_data.chance,
        "vectors": [site_data.n_tokens] * len(activities or ()),
    }
    values = {
        "name": name,
        "noun": "feature",
        "has_texts": activities is not None,
        "about": _about_lines(site_data, dict(about or {})),
    }
    write_site(target, site_data, pages=PAGES, scripts=SCRIPTS, meta=meta, values=values)
    return target


def _check_dictionaries(features: Features | Sequence[Features]) -> list[Features]:
    """The dictionaries as a list.

    Raises:
        EmbspaceError: If there are none, one is not a dictionary of features, or two have one name.
    """
    dictionaries = [features] if isinstance(features, Features) or not isinstance(features, Sequence) else [*features]
    if not dictionaries:
        raise errors.no_dictionaries()
    names: set[str] = set()
    for each in dictionaries:
        if not isinstance(each, Features):
            raise errors.not_a_dictionary(each)
        if each.name in names:
            raise errors.repeated_dictionary(each.name)
        names.add(each.name)
    return dictionaries


def _place(features: Features) -> str:
    """Where a dictionary reads, and where it writes if that is elsewhere."""
    return f"{features.hook} → {features.output_hook}" if features.is_transcoder else features.hook


def _about_lines(site_data: FeatureData, more: dict[str, str]) -> list[tuple[str, str]]:
    """The lines of the page about the method: label and text."""
    lines = [("Lens", repr(site_data.lens))]
    for i, features in enumerate(site_data.dictionaries):
        own = slice(site_data.first[i], site_data.first[i] + len(features))
        text = f"{features!r}; {site_data.is_legible[own].sum():,} legible"
        if site_data.layers:
            text += f"; {(site_data.frequency[own] == 0).sum():,} dead (code 0 in all texts)"
        lines.append(("Dictionary", text))
        lines += [("Note", note) for note in features.notes]
    if site_data.layers:
        lines.append(("Texts", f"{site_data.n_tokens:,} tokens were read"))
    return about_lines([*lines, *more.items()])
