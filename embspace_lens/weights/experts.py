"""The experts of a mixture: one expert's weights from any of the ways in which models store them."""

from typing import Any, NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from .modules import readable, unwrap

NO_EXPERT = -1
"""The index of an MLP that receives all tokens: a dense MLP, or the shared expert of a mixture."""

SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")
MLP_LAYERS = {
    "W_in": ("W_in", "up_proj", "w3"),
    "W_gate": ("W_gate", "gate_proj", "w1"),
    "W_out": ("W_out", "down_proj", "w2"),
}
"""The names of an expert's matrices: HookedTransformer's, and two of Hugging Face's."""


class ExpertWeights(NamedTuple):
    """The experts of one block.

    Attributes:
        experts: A list of modules, or one module whose parameters hold all experts.
        n_experts: The number of experts.
        shared: The shared expert, which receives all tokens.
        label: What to call them in an error message.
    """

    experts: nn.Module
    n_experts: int
    shared: nn.Module | None
    label: str

    @classmethod
    def of(cls, mlp: nn.Module, label: str) -> "ExpertWeights":
        """Find the experts in a block's MLP.

        Raises:
            EmbspaceError: If they are stored in an unknown way.
        """
        inner = unwrap(mlp)
        modules: dict[str, Any] = inner._modules
        experts = unwrap(modules["experts"]) if "experts" in modules else inner
        shared = next((modules[name] for name in SHARED_EXPERTS if modules.get(name) is not None), None)
        if isinstance(experts, nn.ModuleList):
            n_experts = len(experts)
        elif "down_proj" in experts._parameters:
            n_experts = cast(Tensor, experts._parameters["down_proj"]).shape[0]
        else:
            raise errors.unknown_storage(label, type(experts).__name__)
        return cls(experts, n_experts, None if shared is None else unwrap(shared), label)

    def matrix(self, name: str, expert: int) -> Float[Tensor, "n_in n_out"] | None:
        """One expert's W_in, W_gate or W_out, transposed to TransformerLens's convention; None for a missing W_gate.

        Raises:
            EmbspaceError: If the matrix is stored in an unknown way.
        """
        if expert == NO_EXPERT:
            return self._matrix_of_module(self.shared, name)
        if isinstance(self.experts, nn.ModuleList):
            return self._matrix_of_module(self.experts[expert], name)
        return self._matrix_of_stack(name, expert)

    def _matrix_of_stack(self, name: str, expert: int) -> Float[Tensor, "n_in n_out"] | None:
        """The matrix from a transformers module with one parameter for all experts; its flags state the layout."""
        flags, parameters = dict(vars(self.experts)), self.experts._parameters
        if (
            type(self.experts).__name__ == "Llama4TextExperts"
        ):  # has no flags; it splits x @ gate_up_proj into two halves
            flags |= {"is_transposed": True, "is_concatenated": True}
        elif "is_transposed" not in flags:
            raise errors.unknown_storage(self.label, type(self.experts).__name__)
        is_fused = name != "W_out" and "gate_up_proj" in parameters
        separate = {"W_in": "up_proj", "W_gate": "gate_proj", "W_out": "down_proj"}[name]
        stack = parameters.get("gate_up_proj" if is_fused else separate)
        if stack is None:
            return None
        weight = readable(stack[expert], name, self.label)
        weight = weight if flags.get("is_transposed", False) else weight.T
        if not is_fused:
            return weight
        half = 0 if name == "W_gate" else 1
        return weight.chunk(2, dim=1)[half] if flags.get("is_concatenated", True) else weight[:, half::2]

    def _matrix_of_module(self, module: nn.Module | None, name: str) -> Float[Tensor, "n_in n_out"] | None:
        """The matrix from a module that is a whole MLP."""
        inner = unwrap(module) if module is not None else None
        for attribute in MLP_LAYERS[name]:
            layer = getattr(inner, attribute, None)
            if isinstance(layer, nn.Module):  # a linear layer stores [n_out, n_in]
                weight = getattr(unwrap(layer), "weight", None)
                return None if weight is None else readable(weight, name, self.label).T
            if isinstance(layer, Tensor):
                return layer
        if name == "W_gate":
            return None
        raise errors.unknown_storage(self.label, type(inner).__name__)
