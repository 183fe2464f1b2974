"""Write the site: pages once, and what they show as script files that are loaded when needed."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..display import theme
from ..display.html import environment, safe, stylesheet
from ..display.tokens import visible
from ..errors import EmbspaceError
from ..factors.contexts import Activity, activity
from ..factors.dictionary import Factors
from ..factors.levels import reach_of
from ..factors.lime import saliency as explain
from .site_data import BUCKETS, NEAREST, Book, bucket

SAMPLES = 300  # variants of a context, where many are explained
MARK = "embspace-lens-site"  # a file of this name says that a folder is ours to replace
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
    layers: Sequence[int] | None = None,
    n_contexts: int = 200,
    n_explained: int = 0,
    max_tokens: int | None = None,
    title: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write a site that explores factors: an overview with a search, a page for each factor, and how it was made.

    The pages are static. They open from disk, load nothing from elsewhere, and fetch what a factor's page shows when it is opened.

    Args:
        factors: The dictionary.
        folder: Where the site goes; made if need be. A site that is there already is replaced, whole or not at all.
        model: The model that the dictionary was fitted to, where `seen` or `lens` have to be made.
        texts: What is read for importance and contexts, as for `activity`.
        seen: What `activity` gave, if that was done; then no text is read.
        lens: An EmbeddingLens, for the nearest tokens of each factor; one of `model` by default.
        saliency: A table of `saliency` whose contexts are those of `seen`; the tokens of these contexts are tinted.
        layers: After which blocks, where texts are read; all of them, and the embedding (−1), by default.
        n_contexts: How many contexts of each factor and layer, where texts are read.
        n_explained: For how many contexts of each factor, where it peaks, `saliency` is computed; it takes about a second each.
        max_tokens: The longest text, in tokens, where texts are read.
        title: The name of the model, or of the dictionary.
        about: More lines for the page that says how it was made: what each is, and what it says.

    Returns:
        The folder; `index.html` in it is the page to open.

    Raises:
        EmbspaceError: If texts come without a model, the folder holds something else or cannot be written, or jinja2 is not installed.

    Example:
        >>> path = explore(Factors(torch.eye(32)[:4], l1=0.1), folder, model=model, texts=["w2 w3 w4", "w5 w6"])
        >>> sorted(item.name for item in path.iterdir() if item.suffix == ".html")
        ['about.html', 'factor.html', 'index.html']

    References:
        Yun et al. (2021), Transformer visualization via dictionary learning, §3 and its web site. https://arxiv.org/abs/2103.15949
    """
    target = _refuse_foreign(folder)
    environment()  # jinja2, before the work that would be lost
    if isinstance(n_explained, bool) or not isinstance(n_explained, int) or n_explained < 0:
        raise EmbspaceError(f"n_explained={n_explained!r} is not a number of 0 or more.")
    if texts is not None and seen is None:
        if model is None:
            raise EmbspaceError("texts are read by a model: give model= too, or seen= of activity().")
        seen = activity(factors, model, texts, layers=layers, n_contexts=n_contexts, max_tokens=max_tokens)
        if n_explained:
            saliency = _explained(factors, model, texts, seen, n_explained)
    largest = max(seen.importance["factor"].tolist(), default=0) if seen is not None else 0
    if largest >= factors.n_factors:
        raise EmbspaceError(
            f"seen speaks of factor {largest}, and there are {factors.n_factors} factors. Is it of another dictionary?"
        )
    if lens is None and model is not None:
        from ..lens import EmbeddingLens

        lens = EmbeddingLens(model)
    nearest = None
    if lens is not None:
        k = min(NEAREST, lens.space.n_tokens)
        names = [str(number) for number in range(factors.n_factors)]
        towards, away = (lens.directions(factors.directions, names=names, k=k, largest=side) for side in (True, False))
        nearest = (towards, away)
    reach = reach_of(saliency) if saliency is not None and len(saliency) else None
    book = Book(factors, seen, nearest, saliency, reach)
    name = visible(title or (lens.name if lens is not None else "a dictionary"))
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        _pages(partial, name, book, about_lines(factors, book, seen, lens, dict(about or {})), seen)
        _data(partial / "data", book)
        (partial / MARK).write_text("Pages made by embspace_lens. This folder is replaced when they are made again.\n")
        partial.chmod(0o755)
        _replace(partial, target)
    except OSError as reason:
        raise EmbspaceError(
            f"{target} cannot be written: {reason.strerror or reason}. Nothing was changed."
        ) from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _explained(factors: Factors, model: Any, texts: Any, seen: Activity, n: int) -> pd.DataFrame:
    """The saliency of each factor's n strongest contexts in the layer of its peak."""
    peaks = seen.importance.sort_values("importance", kind="stable").groupby("factor").tail(1)
    places: Any = seen.contexts.merge(peaks[["factor", "layer"]], on=["factor", "layer"])
    return explain(factors, model, texts, places[places["rank"] < n], n_samples=SAMPLES)


def about_lines(
    factors: Factors, book: Book, seen: Activity | None, lens: Any, more: dict[str, str]
) -> list[tuple[str, str]]:
    """What the site was made of, in the order in which a reader asks."""
    lines = [("Dictionary", f"{factors.n_factors:,} factors of width {factors.d_model}, λ = {factors.l1:g}")]
    if lens is not None:
        lines.append(("Nearest tokens", f"{lens!r}; scores by {lens.space.score}"))
    if seen is not None:
        n_dead = int((book.curves.max(axis=1, initial=0.0) <= 0).sum())
        n_vectors = sum(seen.measures["n_vectors"].tolist())
        lines.append(("Read", f"{n_vectors:,} hidden states of {len(book.layers)} layers"))
        lines.append(("Dead factors", f"{n_dead:,} of {factors.n_factors:,} are 0 in all of them"))
    lines += more.items()
    versions = []
    for package in ("embspace-lens", "transformer-lens", "torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [(visible(what), visible(says)) for what, says in [*lines, ("Versions", ", ".join(versions))]]


def _pages(folder: Path, name: str, book: Book, about: list[tuple[str, str]], seen: Activity | None) -> None:
    meta = {
        "name": name,
        "n": book.n_factors,
        "layers": book.layers,
        "buckets": BUCKETS,
        "salient": bool(book._salient),
    }
    measures = seen.measures.to_dict("records") if seen is not None else []
    shared = {
        "name": name,
        "n_factors": book.n_factors,
        "meta": safe(script_json(meta)),
        "about": about,
        "measures": measures,
        "css": stylesheet(),
        "mono": safe(theme.MONO),
        "spaces": {"tint": round(100 * theme.TINT)},
    }
    for page in PAGES:
        text = environment().get_template(page).render(shared)
        (folder / page).write_text(text, encoding="utf-8")
    for script in SCRIPTS:
        shutil.copyfile(TEMPLATES / script, folder / script)


def _data(folder: Path, book: Book) -> None:
    """One file for the overview, one a factor, one a factor and layer, and the index of words in buckets."""
    index: list[dict[str, list[int]]] = [{} for _ in range(BUCKETS)]
    _give(folder, "overview", book.overview())
    for factor in tqdm(range(book.n_factors), desc="pages", unit="factor", disable=None, leave=False):
        _give(folder, f"f/{factor}/head", book.head(factor))
        for place, layer in enumerate(book.layers):
            _give(folder, f"f/{factor}/{place}", book.contexts(factor, layer))
        for word, (percent, why) in book.words(factor).items():
            index[bucket(word)].setdefault(word, []).extend((factor, percent, why))
    for number, words in enumerate(index):
        if words:
            _give(folder, f"w/{number}", words)


def _give(folder: Path, name: str, value: Any) -> None:
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"esl.give({json.dumps(name)},{script_json(value)});\n", encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that may stand in a script of a page: nothing in it can end the script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):  # fmt: skip
        text = text.replace(character, escaped)
    return text


def _refuse_foreign(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise EmbspaceError(f"{path} is a file. Name a folder for the site.")
    if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
        raise EmbspaceError(f"{path} holds something that is not such a site. Name a new folder; nothing was changed.")
    if not path.parent.is_dir():
        raise EmbspaceError(f"{path} cannot be made: {path.parent} is not a folder. Make it first.")
    return path


def _replace(partial: Path, target: Path) -> None:
    """Put the finished folder in the place of an older site, which comes back if that fails."""
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
