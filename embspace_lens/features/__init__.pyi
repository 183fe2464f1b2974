from .dictionary import Features as Features
from .encoders import Activation as Activation
from .pretrained import demo_features as demo_features
