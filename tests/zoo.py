"""Tiny random models of many architectures, made offline from configurations.

`ZOO[name]()` gives a Hugging Face model (d_model 32, vocabulary 97), `boot` puts it into a TransformerBridge and
`compat` turns compatibility mode on. `NATIVE[name]()` gives a bridge around TransformerLens's own modules, and
`HT_ZOO[name]()` a HookedTransformer where the installed TransformerLens has one (3.9). Every weight, bias and norm gain
is random: a reading that omits one of them has a large error. `UNAVAILABLE`, `NO_FORWARD` and `NO_COMPAT` give the reason
why an architecture is missing, cannot run or cannot be processed with the installed versions.
"""

import os
import re
import warnings
import zlib
from collections.abc import Callable
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

try:  # `hasattr` is not enough: transformer_lens 4 raises ImportError from its module __getattr__
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:
    HookedTransformer = HookedTransformerConfig = None

D_MODEL, D_VOCAB, D_MLP, N_CTX, N_LAYERS, N_HEADS = 32, 97, 48, 24, 2, 4

# Norms whose effective gain is 1 + weight: taken from the modelling code of transformers.
OFFSET_NORMS = re.compile(
    r"^(Gemma|Gemma2|Gemma3|VaultGemma|RecurrentGemma|Qwen3Next|Qwen3_5|Qwen3_5Moe)RMSNorm$|^NemotronLayerNorm1P$"
)

# Settings under the names of Llama-like configurations, and under those of older families.
LLAMA = dict(
    vocab_size=D_VOCAB, hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
    num_attention_heads=N_HEADS,
    num_key_value_heads=2, max_position_embeddings=N_CTX, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    tie_word_embeddings=False,
)  # fmt: skip
MHA = LLAMA | dict(num_key_value_heads=N_HEADS)
GPT = dict(
    vocab_size=D_VOCAB,
    n_embd=D_MODEL,
    n_layer=N_LAYERS,
    n_head=N_HEADS,
    n_positions=N_CTX,
    bos_token_id=1,
    eos_token_id=2,
)
OPT = dict(
    vocab_size=D_VOCAB, hidden_size=D_MODEL, ffn_dim=D_MLP, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS,
    max_position_embeddings=N_CTX, word_embed_proj_dim=D_MODEL, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FALCON = dict(
    vocab_size=D_VOCAB, hidden_size=D_MODEL, ffn_hidden_size=D_MLP, num_hidden_layers=N_LAYERS,
    num_attention_heads=N_HEADS,
    max_position_embeddings=N_CTX, bos_token_id=1, eos_token_id=2, attention_dropout=0.0, hidden_dropout=0.0,
)  # fmt: skip
BERT = dict(
    vocab_size=D_VOCAB, hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
    num_attention_heads=N_HEADS,
    max_position_embeddings=N_CTX, pad_token_id=0,
)  # fmt: skip
EXPERTS = dict(num_experts=3, num_experts_per_tok=2)
LINEAR = dict(  # linear attention in block 0, softmax attention in block 1
    layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8,
)  # fmt: skip
MAMBA2 = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_d_conv=2, mamba_expand=2)
SLIDING = dict(layer_types=["sliding_attention", "full_attention"])
DEEPSEEK = dict(
    q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, n_shared_experts=1,
    num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1, n_group=1, topk_group=1,
)  # fmt: skip


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Make every parameter random; norm gains are near their identity value."""
    generator = torch.Generator().manual_seed(seed)
    names = {id(p): n for n, p in model.named_parameters()}
    gains = {}  # id -> identity value of the gain
    for module in model.modules():
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            gains[id(module.weight)] = 0.0 if OFFSET_NORMS.match(type(module).__name__) else 1.0
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in gains:
                parameter.copy_(gains[id(parameter)] + 0.3 * noise)
            elif names[id(parameter)].endswith(("A_log", "dt_bias", ".D")):
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)


def _build(name: str, config: str, model: str, kwargs: dict, edit: Callable | None = None) -> torch.nn.Module:
    settings = getattr(transformers, config)(**kwargs)
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    hf_model = getattr(transformers, model)(settings).eval()
    hf_model.config.architectures = [
        model
    ]  # models built from a configuration have None, which most model types cannot boot with
    _randomise(hf_model, seed)
    if edit is not None:
        edit(hf_model)
    return hf_model


_TABLE = {
    # GPT-2 and its family: LayerNorm, learned or rotary or ALiBi positions
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT | dict(n_inner=D_MLP)),
    "openai_gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel", GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        dict(
            vocab_size=D_VOCAB, hidden_size=D_MODEL, intermediate_size=D_MLP, num_layers=2, num_heads=N_HEADS,
            window_size=8,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=N_CTX, bos_token_id=1, eos_token_id=2,
        ),
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", MHA | dict(use_parallel_residual=True)),
    "gpt_neox_sequential": ("GPTNeoXConfig", "GPTNeoXForCausalLM", MHA | dict(use_parallel_residual=False)),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", GPT | dict(n_inner=D_MLP, rotary_dim=4)),
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM", GPT | dict(n_inner=D_MLP, rotary_dim=4, n_head=8)),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM", GPT | dict(n_inner=D_MLP, multi_query=True)),
    "opt": ("OPTConfig", "OPTForCausalLM", OPT),
    "opt_post_norm": ("OPTConfig", "OPTForCausalLM", OPT | dict(do_layer_norm_before=False)),
    "opt_350m": ("OPTConfig", "OPTForCausalLM", OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16)),
    "bloom": (
        "BloomConfig", "BloomForCausalLM",
        dict(vocab_size=D_VOCAB, hidden_size=D_MODEL, n_layer=2, n_head=N_HEADS),
    ),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        dict(vocab_size=D_VOCAB, d_model=D_MODEL, n_heads=N_HEADS, n_layers=2, max_seq_len=N_CTX, expansion_ratio=2),
    ),
    "xglm": (
        "XGLMConfig",
        "XGLMForCausalLM",
        dict(
            vocab_size=D_VOCAB, d_model=D_MODEL, ffn_dim=D_MLP, num_layers=2, attention_heads=N_HEADS,
            max_position_embeddings=N_CTX, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
    ),
    # Llama and its family: RMSNorm, rotary positions, gated MLP, grouped key/value heads
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama_bias": (
        "LlamaConfig", "LlamaForCausalLM",
        MHA | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", LLAMA | dict(head_dim=16)),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", LLAMA | dict(head_dim=16)),
    "gemma": (
        "GemmaConfig", "GemmaForCausalLM",
        LLAMA | dict(num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    ),
    "gemma2": (
        "Gemma2Config", "Gemma2ForCausalLM",
        LLAMA | dict(head_dim=8, query_pre_attn_scalar=8, tie_word_embeddings=True),
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        LLAMA | dict(head_dim=8, query_pre_attn_scalar=8, tie_word_embeddings=True),
    ),
    "gemma4_text": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        LLAMA
        | dict(
            head_dim=8, global_head_dim=16, num_global_key_value_heads=2,
            layer_types=["sliding_attention", "full_attention"],
            vocab_size_per_layer_input=D_VOCAB, hidden_size_per_layer_input=8, num_kv_shared_layers=0,
            tie_word_embeddings=True,
        ),
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", LLAMA),
    "vaultgemma": (
        "VaultGemmaConfig", "VaultGemmaForCausalLM",
        LLAMA | SLIDING | dict(head_dim=8, query_pre_attn_scalar=8, tie_word_embeddings=True),
    ),
    "nanochat": ("NanoChatConfig", "NanoChatForCausalLM", LLAMA),
    "bitnet": ("BitNetConfig", "BitNetForCausalLM", LLAMA),
    "jais2": ("Jais2Config", "Jais2ForCausalLM", LLAMA | dict(head_dim=8)),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", LLAMA),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", LLAMA),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", LLAMA | SLIDING),
    "exaone4": (
        "Exaone4Config",
        "Exaone4ForCausalLM",
        LLAMA | dict(sliding_window=8, sliding_window_pattern=2, layer_types=["sliding_attention", "full_attention"]),
    ),
    "granite": (
        "GraniteConfig",
        "GraniteForCausalLM",
        LLAMA | dict(embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.3),
    ),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", LLAMA),
    "glm": ("GlmConfig", "GlmForCausalLM", LLAMA | dict(head_dim=8)),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", LLAMA | dict(head_dim=8)),
    "seed_oss": ("SeedOssConfig", "SeedOssForCausalLM", LLAMA | dict(head_dim=16)),
    "ernie4_5": ("Ernie4_5Config", "Ernie4_5ForCausalLM", LLAMA | dict(head_dim=8)),
    "hunyuan_dense": ("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", LLAMA | dict(head_dim=8)),
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM", LLAMA | dict(head_dim=8)),
    # Other combinations: gates without RMSNorm, RMSNorm without gates, parallel blocks, norms in other positions
    "arcee": ("ArceeConfig", "ArceeForCausalLM", LLAMA),
    "apertus": ("ApertusConfig", "ApertusForCausalLM", LLAMA),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", LLAMA | dict(head_dim=8)),
    "phi": ("PhiConfig", "PhiForCausalLM", MHA),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", LLAMA),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", LLAMA),
    "stablelm_parallel": (
        "StableLmConfig",
        "StableLmForCausalLM",
        LLAMA | dict(use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True),
    ),
    "cohere": ("CohereConfig", "CohereForCausalLM", LLAMA | dict(tie_word_embeddings=True)),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", LLAMA | dict(tie_word_embeddings=True)),
    "falcon_7b": (
        "FalconConfig",
        "FalconForCausalLM",
        FALCON | dict(multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False, bias=False),
    ),
    "falcon_rw": (
        "FalconConfig",
        "FalconForCausalLM",
        FALCON | dict(multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True),
    ),
    # Mixtures of experts
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", LLAMA | dict(num_local_experts=3, num_experts_per_tok=2)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        LLAMA | EXPERTS | dict(
            moe_intermediate_size=16, shared_expert_intermediate_size=24, mlp_only_layers=[0], decoder_sparse_step=1,
        ),
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        LLAMA | EXPERTS | dict(head_dim=16, moe_intermediate_size=16),
    ),
    "gpt_oss": (
        "GptOssConfig", "GptOssForCausalLM",
        LLAMA | dict(num_local_experts=3, num_experts_per_tok=2, head_dim=8),
    ),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", LLAMA | EXPERTS),
    "granitemoe": (
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        LLAMA | dict(num_local_experts=3, num_experts_per_tok=2, residual_multiplier=0.5, attention_multiplier=0.3),
    ),
    "llama4_text": (
        "Llama4TextConfig", "Llama4ForCausalLM",
        LLAMA
        | dict(
            head_dim=8, intermediate_size=16, intermediate_size_mlp=40, num_local_experts=3, num_experts_per_tok=1,
            interleave_moe_layer_step=2, attention_chunk_size=8,
        ),
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM",
        LLAMA
        | dict(
            moe_num_experts=3, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1, moe_layer_interval=1,
            moe_intermediate_size=16,
        ),
    ),
    "glm4_moe": (
        "Glm4MoeConfig", "Glm4MoeForCausalLM",
        LLAMA
        | dict(
            head_dim=8, moe_intermediate_size=16, n_routed_experts=3, num_experts_per_tok=2, n_shared_experts=1,
            first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=True,
        ),
    ),
    "flex_olmo": ("FlexOlmoConfig", "FlexOlmoForCausalLM", LLAMA | EXPERTS),
    "minimax_m2": (
        "MiniMaxM2Config", "MiniMaxM2ForCausalLM",
        LLAMA | dict(num_local_experts=3, num_experts_per_tok=2, head_dim=8, rotary_dim=8),
    ),
    "afmoe": (
        "AfmoeConfig", "AfmoeForCausalLM",
        LLAMA | EXPERTS | SLIDING
        | dict(head_dim=8, moe_intermediate_size=16, num_shared_experts=1, num_dense_layers=1),
    ),
    # Hybrids
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        LLAMA
        | EXPERTS
        | dict(
            num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
            mamba_d_state=4, mamba_d_conv=2, mamba_dt_rank=4, use_mamba_kernels=False,
        ),
    ),
    "qwen3_next": (
        "Qwen3NextConfig", "Qwen3NextForCausalLM",
        LLAMA
        | EXPERTS
        | LINEAR
        | dict(
            head_dim=16, moe_intermediate_size=16, shared_expert_intermediate_size=24, decoder_sparse_step=1,
            mlp_only_layers=[0],
        ),
    ),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", LLAMA | LINEAR | dict(head_dim=16)),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM",
        LLAMA
        | EXPERTS
        | LINEAR
        | dict(head_dim=16, moe_intermediate_size=16, shared_expert_intermediate_size=24),
    ),
    "olmo_hybrid": ("OlmoHybridConfig", "OlmoHybridForCausalLM", LLAMA | LINEAR),
    "lfm2": (
        "Lfm2Config", "Lfm2ForCausalLM",
        LLAMA | dict(layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False),
    ),
    "lfm2_moe": (
        "Lfm2MoeConfig", "Lfm2MoeForCausalLM",
        LLAMA
        | EXPERTS
        | dict(layer_types=["conv", "full_attention"], conv_L_cache=3, moe_intermediate_size=16, num_dense_layers=1),
    ),
    "bamba": ("BambaConfig", "BambaForCausalLM", LLAMA | MAMBA2 | dict(attn_layer_indices=[1])),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM", LLAMA | MAMBA2 | dict(head_dim=8, mamba_d_ssm=64)),
    # Encoders, and a decoder derived from one; their norms are in other positions
    "bert": ("BertConfig", "BertForMaskedLM", BERT),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", BERT | dict(pad_token_id=1, max_position_embeddings=N_CTX + 2)),
    "modernbert_decoder": (
        "ModernBertDecoderConfig",
        "ModernBertDecoderForCausalLM",
        {k: v for k, v in MHA.items() if k != "num_key_value_heads"} | dict(norm_bias=False),
    ),
    # Multi-head latent attention
    "deepseek_v2": (
        "DeepseekV2Config", "DeepseekV2ForCausalLM", MHA | DEEPSEEK | dict(n_routed_experts=3, topk_method="greedy"),
    ),
    "deepseek_v2_lite": (
        "DeepseekV2Config", "DeepseekV2ForCausalLM",
        MHA | DEEPSEEK | dict(n_routed_experts=3, q_lora_rank=None, topk_method="greedy"),
    ),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", MHA | DEEPSEEK | dict(n_routed_experts=3)),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM",
        MHA | DEEPSEEK | dict(n_routed_experts=3, mlp_layer_types=["dense", "sparse"]),
    ),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig", "GlmMoeDsaForCausalLM",
        MHA
        | DEEPSEEK
        | dict(
            n_routed_experts=3, mlp_layer_types=["dense", "sparse"], index_topk=16, index_head_dim=8, index_n_heads=2,
        ),
    ),
    # transformers sets the embedding of Youtu's padding token to 0 when it loads a checkpoint.
    "youtu": ("YoutuConfig", "YoutuForCausalLM", MHA | DEEPSEEK | dict(pad_token_id=None)),
    # Models of which some or all weights cannot be read
    "jetmoe": (
        "JetMoeConfig", "JetMoeForCausalLM", LLAMA | dict(num_local_experts=3, num_experts_per_tok=2, kv_channels=8),
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM",
        LLAMA
        | MAMBA2
        | dict(
            num_local_experts=3, num_experts_per_tok=2, shared_intermediate_size=24, layer_types=["mamba", "attention"]
        ),
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        dict(
            vocab_size=D_VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=4, time_step_rank=4,
            pad_token_id=0,
        ),
    ),
    "falcon_40b": (
        "FalconConfig",
        "FalconForCausalLM",
        FALCON | dict(multi_query=False, new_decoder_architecture=True, num_kv_heads=2, alibi=False, bias=False),
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        dict(
            vocab_size=D_VOCAB, d_model=D_MODEL, d_kv=8, d_ff=D_MLP, num_layers=2, num_heads=N_HEADS,
            decoder_start_token_id=0,
        ),
    ),
}  # fmt: skip

ZOO: dict[str, Callable[[], torch.nn.Module]] = {name: partial(_build, name, *row) for name, row in _TABLE.items()}

_AVAILABLE = set(dir(transformers))  # hasattr would import the modules of all models
UNAVAILABLE: dict[str, str] = {
    name: f"transformers {transformers.__version__} has no {model}"
    for name, (_, model, *_) in _TABLE.items()
    if model not in _AVAILABLE
}


# Limitations of the installed TransformerLens with models of the zoo, found by running them.
NO_FORWARD = {
    "opt_post_norm": "TransformerLens cannot run OPT with norms after the sublayers",
    "opt_350m": "TransformerLens cannot run OPT with norms after the sublayers",
    "t5": "an encoder-decoder model",
}
NO_COMPAT = {
    "vaultgemma": "TransformerLens refuses it",
    "falcon_h1": "enable_compatibility_mode fails in TransformerLens with grouped key/value heads",
    "opt_post_norm": "enable_compatibility_mode fails in TransformerLens: it requires a final norm",
}
if HookedTransformer is not None:
    UNAVAILABLE["cohere_per_head"] = "TransformerLens 3 does not know the norms of its queries and keys"
    UNAVAILABLE["roberta"] = "TransformerLens 3 has no adapter for RoBERTa"
    NO_COMPAT["ernie4_5_moe"] = "enable_compatibility_mode fails in TransformerLens 3 on its shared experts"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A fresh tokenizer of 97 words without a beginning-of-sequence token (booting changes its tokenizer)."""
    vocabulary = {"<unk>": 0, "<|endoftext|>": 1} | {f"w{i}": i for i in range(2, D_VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<|endoftext|>"
    )


def boot(hf_model: torch.nn.Module) -> torch.nn.Module:
    """A TransformerBridge around `hf_model`, which it changes in place."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("zoo", hf_model=hf_model, tokenizer=tokenizer(), device="cpu")
    return bridge.eval()


def compat(bridge: torch.nn.Module) -> torch.nn.Module:
    """The same bridge after `enable_compatibility_mode`, which changes its weights in place."""
    # The attention of gpt_oss sums to less than 1 (attention sinks), so that folding value biases changes the function.
    options = dict(fold_value_biases=False) if bridge.cfg.architecture == "GptOssForCausalLM" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* does not support (fold_ln|center_writing_weights)")
        bridge.enable_compatibility_mode(**options)
    return bridge


_NATIVE = dict(
    d_model=D_MODEL, d_head=8, n_layers=N_LAYERS, n_ctx=N_CTX, n_heads=N_HEADS, d_vocab=D_VOCAB, d_mlp=D_MLP, seed=0
)
_NATIVE_TABLE = {
    "native_ln": dict(act_fn="gelu", normalization_type="LN"),
    "native_rms_gqa": dict(
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        n_key_value_heads=2,
        positional_embedding_type="rotary",
        rotary_dim=8,
    ),
    "native_no_norm": dict(act_fn="relu", normalization_type=None),
    "native_attn_only": dict(attn_only=True, normalization_type="LN"),
}


def _native(name: str, settings: dict) -> torch.nn.Module:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**_NATIVE, **settings))
    _randomise(bridge.original_model, zlib.crc32(name.encode()))
    return bridge.eval()


# Bridges around TransformerLens's own modules; they wrap no Hugging Face model.
NATIVE: dict[str, Callable[[], torch.nn.Module]] = {
    name: partial(_native, name, row) for name, row in _NATIVE_TABLE.items()
}


_HOOKED = dict(d_model=D_MODEL, d_head=8, n_layers=N_LAYERS, n_ctx=N_CTX, n_heads=N_HEADS, d_vocab=D_VOCAB, d_mlp=D_MLP)
_HT_TABLE = {
    "ht_gpt2": dict(act_fn="gelu", normalization_type="LN"),
    "ht_gqa_gated_rms": dict(
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        n_key_value_heads=2,
        positional_embedding_type="rotary",
        rotary_dim=8,
    ),
    "ht_parallel": dict(act_fn="gelu", normalization_type="LN", parallel_attn_mlp=True),
    "ht_no_norm": dict(act_fn="relu", normalization_type=None),
    "ht_attn_only": dict(attn_only=True, normalization_type="LN"),
    "ht_moe": dict(act_fn="silu", gated_mlp=True, normalization_type="RMS", num_experts=3, experts_per_token=2),
}


def _hooked(name: str, settings: dict) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(HookedTransformerConfig(**_HOOKED, **settings, seed=0, device="cpu"))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter_name.endswith(".w") else 0.2 * noise)  # .w is a norm's gain
    return model.eval()


HT_ZOO: dict[str, Callable[[], torch.nn.Module]] = (
    {} if HookedTransformer is None else {name: partial(_hooked, name, row) for name, row in _HT_TABLE.items()}
)
