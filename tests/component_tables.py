"""Tables of components, and forward passes, for the tests of interventions."""

from typing import Any

import pandas as pd
import torch

TOKENS = torch.tensor([[5, 9, 11, 40, 7], [3, 8, 60, 60, 2]])
GROUP = {"llama": 2, "phi3": 2, "gemma2": 2, "mixtral": 2, "falcon_7b": 4, "native_rms_gqa": 2, "ht_gqa_gated_rms": 2}
MODELS = ["gpt2", "llama", "gpt_neox", "phi3", "bloom", "gemma2", "falcon_7b", "mixtral", "native_rms_gqa"]
MODELS += ["ht_gpt2", "ht_gqa_gated_rms", "ht_parallel", "ht_moe"]
KINDS = ["neuron", "head", "W_Q", "W_K", "W_V", "W_O", "direction"]
COMPONENTS: dict[str, list[tuple[Any, ...]]] = {  # (layer, …), in the sorted order of the keys
    "neuron": [(0, 3), (1, 0), (1, 17)],
    "head": [(0, 2), (1, 1), (1, 3)],
    "subhead": [(0, 2, 5), (1, 1, 0), (1, 3, 7)],
    "direction": [(0, "a"), (0, "b"), (1, "a")],
}
VECTORS = {"a": torch.arange(32.0) - 9, "b": torch.cos(torch.arange(32.0))}  # not orthogonal


def logits(model, hooks=()):
    with torch.no_grad():
        return model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))


def assert_close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def table(kind: str) -> Any:
    names: dict[str, list[str]] = {
        "neuron": ["layer", "neuron"],
        "head": ["layer", "head"],
        "direction": ["layer", "direction"],
    }
    if kind in names:
        return pd.DataFrame(COMPONENTS[kind], columns=pd.Index(names[kind]))
    return pd.DataFrame(COMPONENTS["subhead"], columns=pd.Index(["layer", "head", "subhead"])).assign(weight=kind)


def hooks_by_hand(name, model, kind, mode, values):
    """The same interventions, as one hook per component."""
    hooks = []
    heads = {"W_Q": "hook_q", "W_K": "hook_k", "W_V": "hook_v", "W_O": "hook_z"}
    if kind == "direction":
        return direction_hooks_by_hand(model, mode, values)
    for i, (layer, *index) in enumerate(COMPONENTS[kind if kind in COMPONENTS else "subhead"]):
        if kind == "neuron":
            hook, cell_index = f"blocks.{layer}.mlp.hook_post", (index[0],)
        elif kind == "head":
            hook, cell_index = f"blocks.{layer}.attn.hook_z", (index[0], slice(None))
        else:
            head = index[0] // GROUP.get(name, 1) if kind in ("W_K", "W_V") else index[0]
            hook, cell_index = f"blocks.{layer}.attn.{heads[kind]}", (head, index[1])

        def edit(value, hook, cell_index=cell_index, i=i):
            old = value[(..., *cell_index)]
            new = {
                "zero": torch.zeros_like(old),
                "mean": old.mean(dim=(0, 1), keepdim=True).expand_as(old)
                if old.ndim > 2
                else old.mean().expand_as(old),
                "tensor": None if values is None else values[i].expand_as(old),
                "scale": -1.5 * old,
            }[mode]
            value = value.clone()
            value[(..., *cell_index)] = new
            return value

        hooks.append((hook, edit))
    return hooks


def direction_hooks_by_hand(model, mode, values):
    """Layer 0 sets two directions at once, by Gram–Schmidt; layer 1 sets one."""
    unit = {name: vector / vector.norm() for name, vector in VECTORS.items()}

    def target(x, i, name):
        old = x @ unit[name]
        return {"zero": 0 * old, "mean": old.mean().expand_as(old), "scale": -1.5 * old}.get(
            mode, old if values is None else values[i].expand_as(old)
        )

    def set_two_directions(value, hook):
        a, b = unit["a"], unit["b"] - (unit["b"] @ unit["a"]) * unit["a"]
        b = b / b.norm()
        new_a, new_b = target(value, 0, "a"), target(value, 1, "b")
        along_b = (new_b - (unit["b"] @ a) * new_a) / (unit["b"] @ b)
        rest = value - (value @ a)[..., None] * a - (value @ b)[..., None] * b
        return rest + new_a[..., None] * a + along_b[..., None] * b

    def set_one_direction(value, hook):
        return value + (target(value, 2, "a") - value @ unit["a"])[..., None] * unit["a"]

    return [("blocks.0.hook_resid_post", set_two_directions), ("blocks.1.hook_resid_post", set_one_direction)]
