"""A model with a planted relation: one head maps each of 40 source tokens to a different target token."""

import torch
import zoo


def planted(sign=1.0):
    """Return a Llama in which head 2 of block 1 maps each of 40 sources to a different target, and the pairs."""
    hf = zoo.ZOO["llama"]()
    order = torch.randperm(95)[:80] + 2
    sources, targets = order[:40], order[40:]
    code = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    with torch.no_grad():
        embed, unembed = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
        embed[:, :8], embed[sources, :8] = 0, code
        unembed[:, 8:16], unembed[targets, 8:16] = 0, code
        hf.model.norm.weight.fill_(1)
        attention = hf.model.layers[1].self_attn
        hf.model.layers[1].input_layernorm.weight.fill_(1)
        attention.v_proj.weight[8:16] = torch.eye(8, 32)  # query heads 2 and 3 share key-value head 1
        attention.o_proj.weight[:, 16:24] = sign * torch.eye(32, 8).roll(8, dims=0)
    return zoo.boot(hf), list(zip(sources.tolist(), targets.tolist()))
