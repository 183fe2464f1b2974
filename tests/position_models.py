"""Models of the tests of positions: those of the zoo, two more, and models for texts and images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
import zoo

_VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)
_CLIP = dict(model_type="clip_vision_model", projection_dim=16) | _VISION
_QWEN_VISION = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=zoo.D_MODEL)
_QWEN_TOKENS = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)


def _with_images(name: str, text: dict, vision: dict, **settings: Any) -> torch.nn.Module:
    """A tiny model for texts and images, named as its configuration without "Config"."""
    text_config = zoo.LLAMA | text
    if "rope_parameters" in text:
        text_config["rope_parameters"] = dict(rope_type="default", rope_theta=10000.0) | text["rope_parameters"]
    config = getattr(transformers, f"{name}Config")(text_config=text_config, vision_config=vision, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    model.config.architectures = [type(model).__name__]
    zoo._randomise(model, 0)
    return model


WITH_IMAGES: dict[str, Callable[[], Any]] = {
    "llava": partial(_with_images, "Llava", dict(model_type="llama"), _CLIP, image_token_index=90),
    "llava_mistral": partial(
        _with_images, "Llava", dict(model_type="mistral", head_dim=8), _CLIP, image_token_index=90
    ),
    "mistral3": partial(
        _with_images, "Mistral3", dict(model_type="mistral", head_dim=8), dict(model_type="pixtral", head_dim=8) | _VISION,
        image_token_index=90,
    ),
    "idefics3": partial(
        _with_images, "Idefics3", dict(model_type="llama"), _VISION, image_token_id=90, scale_factor=2
    ),
    "qwen2_5_vl": partial(
        _with_images, "Qwen2_5_VL", dict(rope_parameters=dict(mrope_section=[1, 1, 2])), _QWEN_VISION, **_QWEN_TOKENS
    ),
    "qwen3_vl": partial(
        _with_images, "Qwen3VL", dict(head_dim=16, rope_parameters=dict(mrope_section=[3, 3, 2])),
        _QWEN_VISION | dict(deepstack_visual_indexes=[0]), **_QWEN_TOKENS,
    ),
    "gemma3": partial(
        _with_images, "Gemma3", dict(head_dim=8, query_pre_attn_scalar=8, tie_word_embeddings=True),
        dict(model_type="siglip_vision_model") | _VISION,
        image_token_index=90, boi_token_index=91, eoi_token_index=92, mm_tokens_per_image=4,
    ),
}  # fmt: skip


def model_of(tiny: Any, name: str) -> Any:
    """A model by name; `tiny` is the fixture."""
    if name == "ht_adjacent":
        settings = dict(
            act_fn="silu", gated_mlp=True, normalization_type="RMS", positional_embedding_type="rotary",
            rotary_dim=4, rotary_adjacent_pairs=True,
        )  # fmt: skip
        return zoo._hooked(name, settings)
    if name == "native_rms":
        return zoo._native(name, dict(act_fn="silu", normalization_type="RMS"))
    return tiny(name) if name in zoo.ZOO else (zoo.NATIVE | zoo.HT_ZOO)[name]()
