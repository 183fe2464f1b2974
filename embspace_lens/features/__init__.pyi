from .encoders import Activation as Activation
from .dictionary import Features as Features
