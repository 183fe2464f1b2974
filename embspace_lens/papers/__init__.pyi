from .experiment import Experiment as Experiment
from .experiment import Findings as Findings
from .experiment import Setting as Setting
from .registry import experiments as experiments
