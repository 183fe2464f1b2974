"""Compute the saliency that comes with the demo's dictionary: `python -m embspace_lens.site.demo_saliency`.

It explains ten contexts of each of the 50 factors with which the overview of `factors explore --demo` begins, in about
ten minutes on one core. Run it again if the demo model, its dictionary, the sampled texts or the options of saliency change.
"""

from ..demo.catalog import load
from ..factors.contexts import activity
from ..factors.pretrained import demo_factors, demo_saliency
from ..forward.sampling import sample_texts
from ..weights.configuration import n_layers
from .context_saliency import N_SAVED, peak_saliency
from .site_data import SiteData

NAME = "reviews-small-0"
N_FACTORS = 50


def main() -> None:
    """Write the file; an interrupted run resumes from it."""
    model, factors = load(NAME), demo_factors(NAME)
    texts = sample_texts(model)
    result = activity(factors, model, texts, layers=range(n_layers(model)))  # it was not fitted to the embedding
    order = SiteData(factors, result, None, None, None).order
    path = demo_saliency(NAME)
    peak_saliency(factors, model, texts, result, N_SAVED, checkpoint=path, factor=order[:N_FACTORS])
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
