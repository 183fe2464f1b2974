"""Multi-head latent attention: weights of heads as products of two factors, of which the first is shared by all heads.

Queries and keys have a part with rotary positions and a part without. Only the part without is read, because the two parts
of a key have different scales.
"""

from typing import Any, NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .. import errors
from ..checkpoints.lazy_tensor import loaded
from ..search.tiles import upcast
from .architectures import LATENT_ATTENTION
from .modules import readable, unwrap

QUERY_FACTORS = {"W_Q": ("q_a_proj", "q_a_layernorm", "q_b_proj")}
KEY_VALUE_FACTORS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")


class LatentFactors(NamedTuple):
    r"""The factors of one weight of all heads. There is a norm between them.

    .. math:: W_h = D^\top\, \mathrm{diag}(\gamma)\, U_h^\top

    The norm divides the latent vector by its root mean square, which differs from token to token and is left out.

    Attributes:
        down: D, from the residual stream to the latent vector; None if the heads read the residual stream (DeepSeek V2 Lite).
        up: U_h, from the latent vector, or from the residual stream, to the heads.
    """

    down: Float[Tensor, "rank d_model"] | None
    up: Float[Tensor, "n_heads d_head n"]

    def product(self, gain: Float[Tensor, " rank"] | None) -> Float[Tensor, "n_heads d_model d_head"]:
        """W_h of all heads in float32 at least, with the gain γ of the norm between the factors; None for 1."""
        up = upcast(loaded(self.up))
        if self.down is None:
            return up.mT
        up = up if gain is None else up * gain.to(up)
        return upcast(loaded(self.down)).mT @ up.mT


def is_latent(attn: nn.Module | None) -> bool:
    """Whether an attention module computes keys and values from a latent vector that all heads share."""
    return attn is not None and "kv_b_proj" in unwrap(attn)._modules


def latent_modules(attn: nn.Module, weight: str) -> tuple[nn.Module | None, nn.Module | None, nn.Module]:
    """The modules of a weight's factors and of the norm between them; without a latent vector, the first two are None."""
    modules: Any = unwrap(attn)._modules
    if weight == "W_O":
        return None, None, modules["o_proj"]
    if weight == "W_Q" and modules.get("q_a_proj") is None:
        return None, None, modules["q_proj"]
    down, norm, up = QUERY_FACTORS.get(weight, KEY_VALUE_FACTORS)
    return modules[down], modules.get(norm), modules[up]


def latent_factors(attn: nn.Module, weight: str, n_heads: int, label: str, model: str) -> LatentFactors:
    """The factors of W_Q, W_K or W_V, without the dimensions of queries and keys that have rotary positions.

    Args:
        attn: The attention module.
        weight: W_Q, W_K or W_V.
        n_heads: The number of heads.
        label: What to call the weight in an error message.
        model: The model's name.

    Raises:
        EmbspaceError: If the module's layout was not checked, or a factor cannot be read.
    """
    d_key = checked_layout(attn, label, model).qk_nope_head_dim
    down, _, up = latent_modules(attn, weight)
    heads = rearrange(_linear(up, label, model), "(head d_head) n -> head d_head n", head=n_heads)
    # The dimensions without rotary positions are the first ones of a query. In U, a head's values follow its keys.
    heads = heads[:, d_key:] if weight == "W_V" else heads[:, :d_key]
    if down is None:
        return LatentFactors(None, heads)
    # The rows of the shared key with rotary positions follow those of the latent vector.
    return LatentFactors(_linear(down, label, model)[: heads.shape[-1]], heads)


def latent_output(attn: nn.Module, n_heads: int, label: str, model: str) -> Float[Tensor, "n_heads d_head d_model"]:
    """W_O of all heads, as stored; otherwise as `latent_factors`."""
    checked_layout(attn, label, model)
    weight = _linear(latent_modules(attn, "W_O")[2], label, model)
    return rearrange(weight, "d_model (head d_head) -> head d_head d_model", head=n_heads)


def latent_scale(attn: nn.Module) -> float | None:
    """The factor of the products of queries and keys, both parts together; None if the module does not state it."""
    original = unwrap(attn)
    scale = getattr(original, "scaling", None) or getattr(original, "softmax_scale", None)
    return None if scale is None else float(scale)


def checked_layout(attn: nn.Module, label: str, model: str) -> Any:
    """The Hugging Face module.

    Raises:
        EmbspaceError: If its layout was not checked against its forward pass.
    """
    original = unwrap(attn)
    if type(original).__name__ not in LATENT_ATTENTION:
        raise errors.latent_attention(label, model, type(original).__name__)
    return original


def _linear(module: nn.Module, label: str, model: str) -> Float[Tensor, "rows columns"]:
    weight: Any = unwrap(module).weight
    return readable(weight, label, model)


def has_indexer(attn: nn.Module | None) -> bool:
    """Whether the keys to which a query attends are selected by other scores (GLM 5)."""
    return attn is not None and "indexer" in unwrap(attn)._modules
