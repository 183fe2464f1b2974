"""Write the site: static pages, and their data as script files that a page loads when it needs them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from .. import errors
from ..display import theme
from ..display.html import environment, safe, stylesheet
from ..display.tokens import visible
from ..factors.contexts import Activity, activity
from ..factors.dictionary import Factors
from ..factors.levels import reach_of
from ..files import expand
from ..lens import EmbeddingLens
from ..tables.checks import check_integer
from .context_saliency import N_SAMPLES, peak_saliency
from .site_data import N_BUCKETS, N_NEAREST, RARE, SiteData, bucket
from .writers import head_writers, neuron_writers, random_cosines, with_other_factors

MARK = "embspace-lens-site"  # a folder with a file of this name is a site, and may be replaced
TEMPLATES = Path(__file__).parent / "templates"
PAGES = ("index.html", "factor.html", "about.html", "style.css")
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
        EmbspaceError: If texts are given without a model, the folder contains other files or cannot be written, or jinja2
            is not installed.

    Example:
        >>> path = explore(Factors(torch.eye(32)[:4], l1=0.1), tmp_path / "site", model=model, texts=["w2 w3 w4", "w5 w6"])
        >>> sorted(file.name for file in path.iterdir() if file.suffix == ".html")
        ['about.html', 'factor.html', 'index.html']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3 and its web site. https://arxiv.org/abs/2103.15949
    """
    target = _check_folder(folder)
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
    lines = _about_lines(factors, site_data, activity_result, lens, dict(about or {}))
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        _write_pages(partial, name, site_data, lines, activity_result, chance)
        _write_all_data(partial / "data", site_data)
        (partial / MARK).write_text(
            "This folder is a site made by embspace_lens. It is replaced when the site is made again.\n"
        )
        partial.chmod(0o755)
        _replace(partial, target)
    except OSError as reason:
        raise errors.site_not_written(target, reason.strerror or reason) from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
    lines += more.items()
    versions = []
    for package in ("embspace-lens", "transformer-lens", "torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [(visible(label), visible(text)) for label, text in [*lines, ("Versions", ", ".join(versions))]]


def _write_pages(
    folder: Path,
    name: str,
    site_data: SiteData,
    about_lines: list[tuple[str, str]],
    activity_result: Activity | None,
    chance: list[float],
) -> None:
    meta = {
        "name": name,
        "n": site_data.n_factors,
        "layers": site_data.layers,
        "buckets": N_BUCKETS,
        "salient": site_data.has_saliency,
        "samples": N_SAMPLES,
        "rare": RARE,
        "chance": chance,
        "vectors": activity_result.measures["n_vectors"].tolist() if activity_result is not None else [],
    }
    values = {
        "name": name,
        "n_factors": site_data.n_factors,
        "n_samples": N_SAMPLES,
        "meta": safe(script_json(meta)),
        "about": about_lines,
        "measures": activity_result.measures.to_dict("records") if activity_result is not None else [],
        "css": stylesheet(),
        "mono": safe(theme.MONO),
        "tint_percent": round(100 * theme.TINT),
    }
    for page in PAGES:
        text = environment().get_template(page).render(values)
        (folder / page).write_text(text, encoding="utf-8")
    for script in SCRIPTS:
        shutil.copyfile(TEMPLATES / script, folder / script)


def _write_all_data(folder: Path, site_data: SiteData) -> None:
    """One file for the overview, one per factor, one per factor and layer, and the search index in buckets."""
    index: list[dict[str, list[int]]] = [{} for _ in range(N_BUCKETS)]
    _write_data(folder, "overview", site_data.overview())
    for factor in tqdm(range(site_data.n_factors), desc="pages", unit="factor", disable=None, leave=False):
        _write_data(folder, f"f/{factor}/head", site_data.head(factor))
        for layer_index, layer in enumerate(site_data.layers):
            _write_data(folder, f"f/{factor}/{layer_index}", site_data.contexts(factor, layer))
        for word, (percent, reason) in site_data.search_words(factor).items():
            index[bucket(word)].setdefault(word, []).extend((factor, percent, reason))
    for number, words in enumerate(index):
        if words:
            _write_data(folder, f"w/{number}", words)


def _write_data(folder: Path, name: str, value: Any) -> None:
    """Write a script that gives a value to the page that loads it; a page opened from disk cannot fetch JSON."""
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"esl.give({json.dumps(name)},{script_json(value)});\n", encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON for use inside a script element: no character in it can end the script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _check_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder in which a site may be written.

    Raises:
        EmbspaceError: If it is a file, contains other files than a site, or cannot be written.
    """
    path = expand(folder).absolute()
    if path.exists() and not path.is_dir():
        raise errors.site_path_is_file(path)
    if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
        raise errors.not_a_site(path)
    if not path.parent.is_dir():
        raise errors.no_parent_folder(path, path.parent)
    try:  # the site is written into a temporary folder beside its path
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as reason:
        raise errors.site_not_written(path, reason.strerror or reason) from reason
    return path


def _replace(partial: Path, target: Path) -> None:
    """Rename the finished folder to the target; an older site there is restored if this fails."""
    if not target.exists():
        partial.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / "site")
    try:
        partial.rename(target)
    except OSError:
        (old / "site").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
