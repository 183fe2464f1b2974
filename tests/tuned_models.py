"""Fine-tuned copies of the zoo's models."""

import copy

import torch
import zoo


def tuned(name, scale=0.05, blocks_only=False):
    """A copy of a model with a small change of every weight, and the model."""
    before, after = zoo.ZOO[name](), zoo.ZOO[name]()
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    with torch.no_grad():
        for key, parameter in after.named_parameters():
            if not blocks_only or ".h." in key or "layers" in key:
                parameter += scale * parameter.std() * torch.randn_like(parameter)
    return zoo.boot(after), zoo.boot(before)
