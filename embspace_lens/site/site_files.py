"""The files of a site: static pages, and their data as scripts that a page loads when it needs them."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from .. import errors
from ..display import theme
from ..display.html import environment, safe, stylesheet
from ..display.tokens import visible
from ..files import expand
from .context_saliency import N_SAMPLES
from .site_data import N_BUCKETS, RARE, bucket

MARK = "embspace-lens-site"  # a folder with a file of this name is a site, and may be replaced
TEMPLATES = Path(__file__).parent / "templates"


@runtime_checkable
class SiteContents(Protocol):
    """The data of a site: of its overview, and of the pages of its factors or features, numbered from 0."""

    n_factors: int
    layers: list[int]

    def overview(self) -> dict[str, Any]: ...
    def head(self, factor: int, /) -> dict[str, Any]: ...
    def contexts(self, factor: int, layer: int, /) -> list[list[Any]]: ...
    def search_words(self, factor: int, /) -> dict[str, tuple[int, int]]: ...


def write_site(
    target: Path,
    site_data: SiteContents,
    *,
    pages: Mapping[str, str],
    scripts: Sequence[str],
    meta: Mapping[str, Any],
    values: Mapping[str, Any],
) -> None:
    """Write a site into a temporary folder, and rename it to its folder; an existing site there is replaced.

    Args:
        target: The folder, checked by `check_folder`.
        site_data: What the pages show.
        pages: The template of each page, by the page's name.
        scripts: The scripts of the pages.
        meta: What all pages need of the data.
        values: The values of the templates.

    Raises:
        EmbspaceError: If a file cannot be written.
    """
    meta = {"n": site_data.n_factors, "layers": site_data.layers, "buckets": N_BUCKETS, "rare": RARE, **meta}
    values = {
        "meta": safe(script_json(meta)),
        "n_factors": site_data.n_factors,
        "n_samples": N_SAMPLES,
        "css": stylesheet(),
        "mono": safe(theme.MONO),
        "tint_percent": round(100 * theme.TINT),
        **values,
    }
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        for page, template in pages.items():
            text = environment().get_template(template).render(values)
            (partial / page).write_text(text, encoding="utf-8")
        for script in scripts:
            shutil.copyfile(TEMPLATES / script, partial / script)
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


def about_lines(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Lines of the page about the method, and the versions of the packages, in visible characters."""
    versions = []
    for package in ("embspace-lens", "transformer-lens", "torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [(visible(label), visible(text)) for label, text in [*lines, ("Versions", ", ".join(versions))]]


def _write_all_data(folder: Path, site_data: SiteContents) -> None:
    """One file for the overview, one per factor, one per factor and layer, and the search index in buckets."""
    index: list[dict[str, list[int]]] = [{} for _ in range(N_BUCKETS)]
    write_data(folder, "overview", site_data.overview())
    for factor in tqdm(range(site_data.n_factors), desc="pages", unit="page", disable=None, leave=False):
        write_data(folder, f"f/{factor}/head", site_data.head(factor))
        for layer_index, layer in enumerate(site_data.layers):
            write_data(folder, f"f/{factor}/{layer_index}", site_data.contexts(factor, layer))
        for word, (percent, reason) in site_data.search_words(factor).items():
            index[bucket(word)].setdefault(word, []).extend((factor, percent, reason))
    for number, words in enumerate(index):
        if words:
            write_data(folder, f"w/{number}", words)


def write_data(folder: Path, name: str, value: Any) -> None:
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


def check_folder(folder: str | os.PathLike[str]) -> Path:
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
