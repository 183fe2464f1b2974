from .dictionary import Features as Features
from .encoders import Activation as Activation
from .weight_labels import feature_labels as feature_labels
