"""Mixtures of experts: one expert's weights out of however the model stores them all."""

from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from .. import errors
from .modules import readable, unwrap

NO_EXPERT = -1  # the number of an expert that every token passes: a shared one, or the dense layer of a mixture


class ExpertWeights(NamedTuple):
    """The experts of one block: batched tensors, or a list of modules; and the expert that every token passes."""

    experts: nn.Module
    n_experts: int
    shared: nn.Module | None
    where: str

    @classmethod
    def of(cls, mlp: nn.Module, where: str) -> "ExpertWeights":
        inner = unwrap(mlp)
        modules: dict[str, Any] = inner._modules
        experts = unwrap(modules["experts"]) if "experts" in modules else inner
        shared = next(
            (modules[n] for n in ("shared_expert", "shared_experts", "shared_mlp") if modules.get(n) is not None), None
        )
        if isinstance(experts, nn.ModuleList):
            count = len(experts)
        elif "down_proj" in experts._parameters:
            count = cast(Tensor, experts._parameters["down_proj"]).shape[0]
        else:
            raise errors.unsupported(where, f"{type(experts).__name__} stores them in a way that is not known here")
        return cls(experts, count, None if shared is None else unwrap(shared), where)

    def matrix(self, name: str, expert: int) -> Tensor | None:
        """One expert's W_in, W_gate or W_out, oriented as TransformerLens orients them."""
        if expert == NO_EXPERT:
            return self._module(self.shared, name)
        if isinstance(self.experts, nn.ModuleList):
            return self._module(self.experts[expert], name)
        # transformers keeps all experts in one tensor and states its layout in these flags.
        flags, parameters = dict(vars(self.experts)), self.experts._parameters
        if type(self.experts).__name__ == "Llama4TextExperts":  # its own code, without flags: x @ gate_up_proj, halves
            flags |= {"is_transposed": True, "is_concatenated": True}
        elif "is_transposed" not in flags:
            raise errors.unsupported(self.where, f"{type(self.experts).__name__} does not say how it stores them")
        if name == "W_out":
            weight = parameters["down_proj"]
        elif "gate_up_proj" in parameters:
            weight = parameters["gate_up_proj"]
        else:
            weight = parameters.get("gate_proj" if name == "W_gate" else "up_proj")
        if weight is None:
            return None
        weight = readable(weight, name, self.where)[expert]
        weight = weight if flags.get("is_transposed", False) else weight.T
        if name == "W_out" or "gate_up_proj" not in parameters:
            return weight
        half = 0 if name == "W_gate" else 1
        return weight.chunk(2, dim=1)[half] if flags.get("is_concatenated", True) else weight[:, half::2]

    def _module(self, module: nn.Module | None, name: str) -> Tensor | None:
        """A whole MLP as a module: HookedTransformer's names, or Hugging Face's."""
        leaves = {
            "W_in": ("W_in", "up_proj", "w3"),
            "W_gate": ("W_gate", "gate_proj", "w1"),
            "W_out": ("W_out", "down_proj", "w2"),
        }
        inner = unwrap(module) if module is not None else None
        for leaf in leaves[name]:
            part = getattr(inner, leaf, None)
            if isinstance(part, nn.Module):  # a linear layer, stored [out, in]
                part = getattr(unwrap(part), "weight", None)
                return None if part is None else readable(part, name, self.where).T
            if isinstance(part, Tensor):
                return part
        if name == "W_gate":
            return None
        raise errors.unsupported(self.where, f"{type(inner).__name__} stores them in a way that is not known here")
