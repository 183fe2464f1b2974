"""Dictionaries of Gemma Scope: `params.npz` for Gemma 2, and `params.safetensors` for single layers of Gemma 3."""

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..search.tiles import upcast
from .hook_names import block_hook, layer_of, point_hook
from .stored import Config, Parts, StoredTensors, jumprelu

NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
REPOSITORY = re.compile(r"gemma-scope-\d+b-(?:pt|it)-(res|mlp|att|transcoders)\b")
HOOKS = {
    "res": ("hook_resid_post", ""),
    "mlp": ("hook_mlp_out", ""),
    "att": ("attn.hook_z", ""),
    # The norm's gain was folded into the MLP, so that transcoders read the vector before the gain.
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
FOLDERS = {
    "resid_post": ("hook_resid_post", ""),
    "mlp_out": ("hook_mlp_out", ""),
    "attn_out": ("attn.hook_z", ""),
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
}
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")


def read_npz(path: Path) -> Parts:
    """Read a `params.npz` of Gemma Scope. The layer and the hook point come from the path, as in the published folders.

    Raises:
        EmbspaceError: If the file is damaged, or the dictionary is not of the residual stream.
    """
    parts = _read(StoredTensors(path, is_lowercase=True), skip="")
    folders = path.parts[:-1]
    repository = REPOSITORY.search(path.as_posix())
    layer = _layer(folders, r"layer_(\d+)")
    if "embedding" in folders and layer is None:
        return _of_embedding(parts)
    hooks = [block_hook(layer, point) for point in HOOKS[repository[1]]] if repository else ["", ""]
    return _placed(parts, "/".join(folders[-3:]) or path.stem, layer, *hooks)


def read_single_layer(folder: Path) -> Parts:
    """Read a folder of Gemma Scope 2 with a dictionary of one layer.

    Raises:
        EmbspaceError: If the files are damaged or disagree, or the dictionary is not of the residual stream.
    """
    parts = _read(StoredTensors(folder / SAFETENSORS, is_lowercase=True), skip="affine_skip_connection")
    layer = _layer(folder.parts, r"layer_(\d+)_width_.*")
    kind = next((kind for kind in FOLDERS if folder.parent.name in (kind, f"{kind}_all")), None)
    hooks = [block_hook(layer, point) for point in FOLDERS[kind]] if kind else ["", ""]
    if (folder / CONFIG).is_file():
        config = Config.read(folder / CONFIG)
        stated = [point_hook(config.text(f"hf_hook_point_{side}")) for side in ("in", "out")]
        # The configuration of an autoencoder may name its point twice.
        hooks = [stated[0], "" if stated[1] == stated[0] else stated[1]] if stated[0] else hooks
        config.check_size("width", parts.decoder.shape[0])
    return _placed(parts, "/".join(folder.parts[-2:]), layer if layer is not None else layer_of(hooks[0]), *hooks)


def _read(tensors: StoredTensors, skip: str) -> Parts:
    d_in, n = tensors.matrix("w_enc").shape
    d_out = tensors.matrix("w_dec").shape[1]
    encoder, decoder = tensors.get_shaped("w_enc", d_in, n), tensors.get_shaped("w_dec", n, d_out)
    tensors.check_widths("w_enc", "w_dec")
    b_enc, b_dec = tensors.get_shaped("b_enc", n), tensors.get_shaped("b_dec", d_out)
    activation = jumprelu(b_enc, tensors.get_shaped("threshold", n), has_relu=True)
    tensors.refuse_others([*NAMES, skip])
    matrix: Tensor | None = tensors.get_shaped(skip, d_in, d_out) if skip in tensors else None
    return Parts(decoder, encoder, activation=activation, decoder_bias=b_dec, skip=matrix, trained_on="raw")


def _placed(parts: Parts, name: str, layer: int | None, hook: str, output_hook: str) -> Parts:
    return replace(parts, name=name, layer=layer, hook=hook, output_hook=output_hook)


def _layer(folders: tuple[str, ...], pattern: str) -> int | None:
    matches = [match for folder in folders if (match := re.fullmatch(pattern, folder))]
    return int(matches[-1][1]) if matches else None


def _of_embedding(parts: Parts) -> Parts:
    """The dictionary of token embeddings, which was trained before Gemma multiplies them by √d_model."""
    assert parts.encoder is not None and parts.decoder_bias is not None  # `_read` gives both
    scale = parts.decoder.shape[1] ** 0.5
    return replace(
        parts,
        decoder=upcast(parts.decoder) * scale,
        encoder=upcast(parts.encoder) / scale,
        name="embedding",
        hook="hook_embed",
        decoder_bias=upcast(parts.decoder_bias) * scale,
        notes=("Trained on embeddings as stored; folded for embeddings times the square root of d_model.",),
    )
