from .effective import Weights as Weights
