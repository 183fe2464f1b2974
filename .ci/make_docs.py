"""Write the API pages with pdoc, one page for each wing: `python .ci/make_docs.py build/docs`."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pdoc

import embspace_lens


def load_names(module: ModuleType) -> None:
    """Load the public names of a lazy package, because pdoc documents only names that are loaded."""
    for name in module.__all__:
        setattr(module, name, getattr(module, name))


folder = Path(sys.argv[1])
public = [(name, getattr(embspace_lens, name)) for name in embspace_lens.__all__]
wings = [value for _, value in public if isinstance(value, ModuleType)]
for module in (embspace_lens, *wings):
    load_names(module)
# The first page lists the wings and the names that are in no wing. The page of a wing documents the names of that wing.
in_wings = {name for wing in wings for name in wing.__all__}
embspace_lens.__all__ = [name for name, _ in public if name not in in_wings]
pdoc.render.configure(
    docformat="google", math=True, show_source=False, footer_text=f"embspace_lens {embspace_lens.__version__}"
)
pdoc.pdoc(
    "embspace_lens",
    *(rf"!embspace_lens\.{wing.__name__.split('.')[-1]}\..+" for wing in wings),
    output_directory=folder,
)

pages = {path: path.read_text("utf-8") for path in sorted(folder.rglob("*.html")) if path.name != "index.html"}
for name, value in public:
    if not isinstance(value, ModuleType):
        page_names = [path.name for path, page in pages.items() if f'<section id="{name}">' in page]
        if len(page_names) != 1:
            sys.exit(f"{name} must be documented on exactly one page; it is on {page_names}.")
broken_pages = [
    path.name
    for path, page in pages.items()
    if re.search(r"\.\. math::|:math:", page)
    or any("<em>" in formula or "<strong>" in formula for formula in re.findall(r"\$\$(.*?)\$\$", page, re.DOTALL))
]
if broken_pages:
    sys.exit(f"Formulas are not converted, or contain Markdown emphasis, on {broken_pages}.")
formulas = sum(page.count("$$") // 2 + page.count("\\(") for page in pages.values())
print(f"{folder}: {len(pages)} pages, {formulas} formulas.")
