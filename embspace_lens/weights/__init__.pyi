from .effective import Weights as Weights
from .first_mlp import first_mlp_output as first_mlp_output
from .weight_difference import WeightDifference as WeightDifference
