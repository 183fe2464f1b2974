"""Facts that no attribute of the host states, by architecture, with the modelling code's names."""

from typing import NamedTuple

from torch import Tensor, nn

# ln1 and ln2 normalise the residual sum after the sublayer, so they are not the norm that the sublayer reads through.
POST_NORM = {"OpenAIGPTLMHeadModel", "BertForMaskedLM", "RobertaForMaskedLM", "HookedEncoder"}


# The norms stand behind the sublayers and before the sum; TransformerLens 3.9 calls them ln1 and ln2, 4 ln1_post and ln2_post.
OUTPUT_NORM = {"Olmo2ForCausalLM", "Olmo3ForCausalLM", "Exaone4ForCausalLM", "FlexOlmoForCausalLM"}


# Norm classes whose gain is 1 + weight, for TransformerLens 3.9; 4 tells it by `uses_weight_offset`.
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


# Modules between the residual stream and W_U: a dense layer, an activation and a norm, which no gain can stand for.
HEADS_BEFORE_UNEMBED = ("mlm_head", "prediction_head")


# W_in holds input and gate side by side, the activated half first, and no attribute says so.
FUSED_IN = {"ModernBertDecoderForCausalLM"}


SCALED_BY_WIDTH = ("Gemma", "VaultGemma", "RecurrentGemma")


MISREAD = "TransformerLens splits its fused query, key and value weights wrongly (new_decoder_architecture)"


class Norm(NamedTuple):
    """What a norm does to a weight beside it: multiply by `gain`, and centre over d_model; and the bias it adds to the stream."""

    name: str = ""
    gain: Tensor | None = None
    centres: bool = False
    bias: Tensor | None = None


class Block(NamedTuple):
    """One block: its attention, its MLP, an MLP beside a mixture that every token passes, and the norms around them."""

    layer: int
    attn: nn.Module | None
    mlp: nn.Module | None
    shared: nn.Module | None
    before_attn: Norm
    after_attn: Norm
    before_mlp: Norm
    after_mlp: Norm
