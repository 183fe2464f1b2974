"""The dictionaries of features on which experiments run."""

from .. import errors
from ..demo import catalog, train_features
from ..features.dictionary import Features
from ..features.pretrained import demo_features
from .data_files import data_file
from .experiment import Setting

NAMES = ("transcoder-1", "transcoder-3", "sae-1")


def dictionaries(experiment: str, setting: Setting) -> dict[str, Features]:
    """The dictionaries of a demo model: those of the package, or trained by its script in the setting's folder.

    Raises:
        EmbspaceError: If the model is not a demo language model, or there are no reviews to train on.
    """
    if setting.model not in catalog.names() or catalog.is_classifier(setting.model):
        raise errors.other_model_needed(
            experiment, setting.model, "a demo language model, on which dictionaries are trained"
        )
    try:
        return {name: demo_features(name, model=setting.model) for name in NAMES}
    except errors.EmbspaceError:
        folder = setting.folder / f"features-{setting.model}-{setting.seed}"
        train_features.main(folder, data_file(setting, "reviews"), model=setting.model, seed=setting.seed)
        return {name: Features.load(folder / name) for name in NAMES}
