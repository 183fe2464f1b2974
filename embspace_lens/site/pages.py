"""The site of a dictionary of transformer factors."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import errors
from ..display.html import environment
from ..display.tokens import visible
from ..factors.contexts import Activity, activity
from ..factors.dictionary import Factors
from ..factors.levels import reach_of
from ..features.dictionary import Features
from ..lens import EmbeddingLens
from ..tables.checks import check_integer
from .context_saliency import N_SAMPLES, peak_saliency
from .site_data import N_NEAREST, SiteData
from .site_files import about_lines, check_folder, write_site
from .writers import head_writers, neuron_writers, random_cosines, with_other_factors

PAGES = {name: name for name in ("index.html", "factor.html", "about.html", "style.css")}
SCRIPTS = ("common.js", "overview.js", "factor.js")


def explore(
    factors: Factors,
    folder: str | os.PathLike[str],
    *,
    model: Any = None,
    texts: Any = None,
    seen: Activity | None = None,
    lens: Any = None,
    saliency: pd.DataFrame | None = None,
    layers: int | Iterable[int] | None = None,
    n_contexts: int = 200,
    n_explained: int = 0,
    max_tokens: int | None = None,
    title: str | None = None,
    about: Mapping[str, str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a static site about factors: an overview with a search, a page for each factor, and a page about the method.

    The pages open from disk. They load nothing from the network, and load the data of a factor when its page is opened.

    Args:
        factors: The dictionary.
        folder: The folder of the site; created if needed. An existing site there is replaced atomically.
        model: The model on which the dictionary was fitted. Needed to read texts; also makes the default lens.
        texts: The texts for importance and contexts, as in `activity`.
        seen: The result of `activity`, if it was computed before; then `texts` is not read.
        lens: An EmbeddingLens for the nearest tokens of each factor; by default the lens of `model`.
        saliency: A table of `saliency` for contexts of `seen`; the tokens of these contexts are tinted.
        layers: The layers for which texts are read; by default the embedding (−1) and all blocks.
        n_contexts: How many contexts of each factor and layer, if texts are read.
        n_explained: For how many contexts of each factor, in the layer of its peak, `saliency` is computed, with 300 variants
            of each context instead of the 2,001 of Yun et al. About one second per context.
        max_tokens: The maximum length of a text in tokens, if texts are read.
        title: The name of the model or of the dictionary.
        about: More lines for the page about the method: label and text.
        checkpoint: A file for the finished contexts of `saliency`. If the call is interrupted, the same call resumes from it.
            Contexts that it contains are tinted even if `n_explained` is 0.

    Returns:
        The folder; open the `index.html` in it.

    Raises:
        EmbspaceError: If the dictionary is one of features (see `explore_features`), texts are given without a model, the folder contains other files or cannot be written, or jinja2
            is not installed.

    Example:
        >>> path = explore(Factors(torch.eye(32)[:4], l1=0.1), tmp_path / "site", model=model, texts=["w2 w3 w4", "w5 w6"])
        >>> sorted(file.name for file in path.iterdir() if file.suffix == ".html")
        ['about.html', 'factor.html', 'index.html']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3 and its web site. https://arxiv.org/abs/2103.15949
    """
    if isinstance(factors, Features):
        raise errors.features_are_not_factors(factors.name)
    target = check_folder(folder)
    environment()  # raises if jinja2 is missing, before the forward passes
    n_explained = check_integer("n_explained", n_explained, minimum=0)
    activity_result = seen
    if texts is not None and activity_result is None:
        if model is None:
            raise errors.texts_without_model()
        options: dict[str, Any] = {"layers": layers, "n_contexts": n_contexts, "max_tokens": max_tokens}
        activity_result = activity(factors, model, texts, **options)
        if n_explained or checkpoint is not None:
            saliency = peak_saliency(factors, model, texts, activity_result, n_explained, checkpoint=checkpoint)
    if activity_result is not None:
        largest = max(activity_result.importance["factor"].tolist(), default=0)
        if largest >= factors.n_factors:
            raise errors.factor_not_in_dictionary("seen", largest, factors.n_factors)
    if lens is None and model is not None:
        lens = EmbeddingLens(model)
    reach = reach_of(saliency) if saliency is not None and len(saliency) else None
    writers, chance = None, []
    if getattr(lens, "weights", None) is not None:
        chance = random_cosines(lens, factors.d_model)
        neurons, heads = neuron_writers(lens, factors.directions), head_writers(lens, factors.directions)
        writers = with_other_factors(neurons), with_other_factors(heads)
    site_data = SiteData(factors, activity_result, _nearest_tokens(factors, lens), saliency, reach, writers)
    name = visible(title or (lens.name if lens is not None else "a dictionary"))
    meta = {
        "name": name,
        "noun": "factor",
        "page": "factor.html",
        "salient": site_data.has_saliency,
        "samples": N_SAMPLES,
        "chance": chance,
        "vectors": activity_result.measures["n_vectors"].tolist() if activity_result is not None else [],
    }
    values = {
        "name": name,
        "noun": "factor",
        "about": _about_lines(factors, site_data, activity_result, lens, dict(about or {})),
        "measures": activity_result.measures.to_dict("records") if activity_result is not None else [],
    }
    write_site(target, site_data, pages=PAGES, scripts=SCRIPTS, meta=meta, values=values)
    return target


def _nearest_tokens(factors: Factors, lens: Any) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The tokens with the highest and with the lowest scores for each factor."""
    if lens is None:
        return None
    names = [str(factor) for factor in range(factors.n_factors)]
    k = min(N_NEAREST, lens.space.n_tokens)
    highest, lowest = (
        lens.directions(factors.directions, names=names, k=k, largest=largest) for largest in (True, False)
    )
    return highest, lowest


def _about_lines(
    factors: Factors, site_data: SiteData, activity_result: Activity | None, lens: Any, more: dict[str, str]
) -> list[tuple[str, str]]:
    """The lines of the page about the method: label and text."""
    lines = [("Dictionary", f"{factors.n_factors:,} factors of width {factors.d_model}, λ = {factors.l1:g}")]
    if lens is not None:
        lines.append(("Nearest tokens", repr(lens)))
    if activity_result is not None:
        n_dead = int((site_data.curves.max(axis=1, initial=0.0) <= 0).sum())
        n_vectors = sum(activity_result.measures["n_vectors"].tolist())
        lines.append(("Activity", f"{n_vectors:,} hidden states of {len(site_data.layers)} layers"))
        lines.append(("Dead factors", f"{n_dead:,} of {factors.n_factors:,} have code 0 in all hidden states"))
    return about_lines([*lines, *more.items()])
