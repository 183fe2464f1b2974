"""Booting: a name, a folder or a Hugging Face model → a TransformerBridge."""

from typing import Any


def boot(name: str, **arguments: Any) -> Any:
    """Boot a TransformerBridge in evaluation mode; `arguments` are those of `TransformerBridge.boot_transformers`."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(name, **arguments)
    return model.eval()
