from .dictionary import Features as Features
from .encoders import Activation as Activation
from .feature_pairs import virtual_weights as virtual_weights
