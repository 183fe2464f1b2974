"""Facts about architectures that no attribute of TransformerLens states; norms and blocks as plain tuples.

Architectures and classes have the names of Hugging Face's modelling code.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoints.lazy_tensor import loaded

# ln1 and ln2 normalize the sum of residual stream and sublayer output. They are not before the sublayer.
POST_NORM = {"OpenAIGPTLMHeadModel", "BertForMaskedLM", "RobertaForMaskedLM", "HookedEncoder"}

# The norms are after the sublayers and before the sum. TransformerLens 3.9 calls them ln1 and ln2, 4 ln1_post and ln2_post.
OUTPUT_NORM = {"Olmo2ForCausalLM", "Olmo3ForCausalLM", "Exaone4ForCausalLM", "FlexOlmoForCausalLM"}

# Classes of norms with the gain 1 + weight. TransformerLens 3.9 needs this list; 4 has the attribute `uses_weight_offset`.
OFFSET_NORMS = {
    "GemmaRMSNorm",
    "Gemma2RMSNorm",
    "Gemma3RMSNorm",
    "NemotronLayerNorm1P",
    "Qwen3NextRMSNorm",
    "Qwen3_5RMSNorm",
    "Qwen3_5MoeRMSNorm",
    "RecurrentGemmaRMSNorm",
    "VaultGemmaRMSNorm",
}

# Modules between the residual stream and W_U: a dense layer, an activation and a norm. They cannot be folded into W_U.
HEADS_BEFORE_UNEMBED = ("mlm_head", "prediction_head")

# W_in holds the columns of W_gate and then those of W_in; no attribute states it.
FUSED_IN = {"ModernBertDecoderForCausalLM"}

# Prefixes of the names of architectures whose embeddings are multiplied by the square root of d_model.
SCALED_BY_WIDTH = ("Gemma", "VaultGemma", "RecurrentGemma")

# These MLPs add the residual stream themselves.
ADDS_RESIDUAL = {"BloomForCausalLM", "MptForCausalLM", "MPTForCausalLM"}

# Prefixes of the names of architectures that rotate queries and keys before they normalise them.
ROTATES_BEFORE_NORM = ("HunYuan", "Llama4", "NanoChat")

# Classes of multi-head latent attention whose layout was checked against the forward pass.
LATENT_ATTENTION = {
    "DeepseekV2Attention",
    "DeepseekV3Attention",
    "Glm4MoeLiteAttention",
    "GlmMoeDsaAttention",
    "YoutuAttention",
}

# Attention scores are not divided by the square root of d_head.
UNSCALED_ATTENTION = {"GPTNeoForCausalLM", "Gemma4ForCausalLM"}


class Norm(NamedTuple):
    """A norm before or after a weight. The default is no norm.

    Attributes:
        name: The norm's name in its block, empty for no norm.
        weight: The parameter as the model stores it; None for a norm without parameters.
        centres: Whether the norm subtracts the mean over d_model, as a LayerNorm does.
        stored_bias: The bias as the model stores it.
        offset: What the norm adds to its parameter.
    """

    name: str = ""
    weight: Float[Tensor, " d_model"] | None = None
    centres: bool = False
    stored_bias: Float[Tensor, " d_model"] | None = None
    offset: int = 0

    @property
    def gain(self) -> Float[Tensor, "*n_heads d"] | None:
        """The factor of each dimension, from the parameter as it is now; None for a norm without parameters.

        A norm of queries or keys may have one row for each head.
        """
        return None if self.weight is None else loaded(self.weight).float() + self.offset

    @property
    def bias(self) -> Float[Tensor, "*n_heads d"] | None:
        """What the norm adds to the normalized vector."""
        return None if self.stored_bias is None else loaded(self.stored_bias).float()


class Block(NamedTuple):
    """The modules of one block, and the norms around them.

    Attributes:
        layer: The block's index.
        attn: Its attention.
        mlp: Its MLP, dense or a mixture of experts.
        shared: An MLP next to the mixture; it receives all tokens.
        before_attn: The norm before attention.
        after_attn: The norm after attention.
        before_mlp: The norm before the MLP.
        after_mlp: The norm after the MLP.
    """

    layer: int
    attn: nn.Module | None
    mlp: nn.Module | None
    shared: nn.Module | None
    before_attn: Norm
    after_attn: Norm
    before_mlp: Norm
    after_mlp: Norm
