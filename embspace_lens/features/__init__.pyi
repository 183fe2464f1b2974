from .dictionary import Features as Features
from .encoders import Activation as Activation
