"""Names of hook points: TransformerLens's for module paths of transformers, and the block of a name."""

import re

MODULE = re.compile(r"(?:^|[._])(?:layers|h|blocks)[._](?P<layer>\d+)(?:[._](?P<inside>.+))?$")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte")
INSIDE = {
    "mlp": ("mlp.hook_in", "hook_mlp_out"),
    "feed_forward": ("mlp.hook_in", "hook_mlp_out"),
    "attn": ("attn.hook_in", "hook_attn_out"),
    "attention": ("attn.hook_in", "hook_attn_out"),
    "self_attn": ("attn.hook_in", "hook_attn_out"),
    None: ("hook_resid_pre", "hook_resid_post"),
}
"""The input and the output of a module of a block; None for the block itself."""
POINTS = {
    "input": "hook_resid_pre",
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_attention_layernorm.output": "hook_attn_out",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""The points of a block of Gemma 2 and 3, which have norms before and after each sublayer."""


def layer_of(hook: str) -> int | None:
    """The block of a hook point; None if its name contains none."""
    match = re.search(r"(?:^|[._])(?:blocks|layers|h)[._](\d+)(?:[._]|$)", hook)
    return int(match[1]) if match else None


def module_hooks(module: str) -> tuple[str, str]:
    """TransformerLens's names of the input and the output of a module, such as `layers.5.mlp`; a name without a translation stays."""
    match = MODULE.search(module)
    if match is None:
        is_embedding = re.split(r"[._](?=embed|wte)", module)[-1] in EMBEDDINGS
        return (module, "hook_embed") if is_embedding else (module, module)
    if match["inside"] not in INSIDE:
        return module, module
    before, after = INSIDE[match["inside"]]
    return f"blocks.{match['layer']}.{before}", f"blocks.{match['layer']}.{after}"


def point_hook(point: str) -> str:
    """TransformerLens's name of the input or output of a module of Gemma, such as `model.layers.5.output`."""
    match = MODULE.search(point)
    if match is None or match["inside"] not in POINTS:
        return point
    return f"blocks.{match['layer']}.{POINTS[match['inside']]}"


def block_hook(layer: int | None, hook: str) -> str:
    """The hook point of a block, such as `blocks.5.hook_mlp_out`; empty if the block or the point is unknown."""
    return f"blocks.{layer}.{hook}" if layer is not None and hook else ""
