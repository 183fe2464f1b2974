from .activation_statistics import Coactivation as Coactivation
from .activation_statistics import coactivation as coactivation
from .activation_statistics import reweighted as reweighted
from .dictionary import Features as Features
from .encoders import Activation as Activation
from .feature_pairs import virtual_weights as virtual_weights
from .pretrained import demo_features as demo_features
from .weight_labels import feature_labels as feature_labels
