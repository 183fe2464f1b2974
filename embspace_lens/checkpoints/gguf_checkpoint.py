"""GGUF checkpoints: their parameters under the names of transformers, and their configuration and tokenizer."""

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import errors
from .gguf_file import SHARD, GgufFile
from .lazy_tensor import LazyTensor, Operation
from .local_files import LocalFiles
from .safetensors_header import natural_order

T = TypeVar("T")

UNREAD_BY_HOST = {
    "qwen2moe": {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    "qwen3": {"attention.key_length": "head_dim"},
    "qwen3moe": {"expert_feed_forward_length": "moe_intermediate_size"},
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
}
"""Metadata that transformers does not put into the configuration, by architecture."""
EMBEDDING, UNEMBEDDING = "token_embd.weight", "output.weight"
WRITTEN = {"general.architecture", "general.alignment"}
"""Metadata that a writer adds by itself."""
INCOMPLETE = {"gpt-oss"}
"""Architectures for which transformers maps some names only."""
ROTARY_FACTORS = "rope_freqs.weight"
"""The numbers by which the rotary frequencies are divided (Llama 3.1 and later)."""
LENGTH_DEPENDENT = ("rope_factors_long.weight", "rope_factors_short.weight")


class GgufCheckpoint(Mapping[str, LazyTensor]):
    """The parameters of a GGUF checkpoint by the names that transformers gives them, in natural order.

    transformers' own code maps the names, and undoes what llama.cpp's converter does to the values: the order of the rows of
    Llama's queries and keys, gains of norms that are stored as 1 + weight, transposed matrices.

    Args:
        path: The file, or one of the files of a split checkpoint.

    Attributes:
        files: The files of its folder; `files.bytes_read` is the size of the tensors that were used.
        config: The configuration that transformers makes from the metadata.
        n_bytes: The size of all tensors.
        types: How each tensor is stored, by its name in the file, such as "Q4_K" or "F32".

    Raises:
        EmbspaceError: As `GgufFile`; or if transformers does not read the model's architecture from GGUF files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        self.config = _configuration(self._file)
        skeleton = _from_metadata(self._file.path, "model", lambda: _skeleton(self.config))
        self.config.architectures = [type(skeleton).__name__]
        tensors = _parameters(self._file, skeleton)
        self._tensors = {name: tensors[name] for name in sorted(tensors, key=natural_order)}
        unread = [name for name in LENGTH_DEPENDENT if name in self._file]
        scaling = self._file.value(f"{self._file.value('general.architecture')}.rope.scaling.type")
        if unread or scaling not in (None, "none"):
            warnings.warn(
                f"{path.name} scales its rotary positions ({unread[0] if unread else scaling}), which transformers does not "
                "read from GGUF files: scores of queries and keys at distances other than 0 are those without this scaling.",
                stacklevel=3,
            )

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"GgufCheckpoint({self.path}: {len(self)} tensors, {self.n_bytes:,} bytes)"

    @property
    def files(self) -> LocalFiles:
        return self._file.files

    @property
    def types(self) -> dict[str, str]:
        return self._file.types

    @property
    def format_name(self) -> str:
        """The format, with the types of the tensors: `GGUF (F32, Q4_K, Q6_K)`."""
        return f"GGUF ({', '.join(sorted(set(self.types.values())))})"

    @property
    def n_bytes(self) -> int:
        return sum(stored.n_bytes for stored in self._file.stored.values())

    @property
    def n_parameters(self) -> int:
        """How many numbers all parameters hold."""
        return self._file.n_elements

    @property
    def rotary_factors(self) -> Tensor | None:
        """The numbers by which the rotary frequencies are divided; None if there are none."""
        return self._file[ROTARY_FACTORS].read().clone() if ROTARY_FACTORS in self._file else None

    def save_configuration(self, folder: Path) -> None:
        """Write config.json and the files of the tokenizer, both made from the metadata, into a folder.

        Raises:
            EmbspaceError: If the tokenizer cannot be made.
        """
        from transformers import PreTrainedTokenizerFast

        first = self._file.path
        # AutoTokenizer gives the same tokenizer, but reads all metadata once more to find its class, which needs a minute.
        tokenizer = _from_metadata(
            first, "tokenizer", lambda: PreTrainedTokenizerFast.from_pretrained(first.parent, gguf_file=first.name)
        )
        tokenizer.save_pretrained(folder)
        self.config.save_pretrained(folder)


def open_gguf(path: Path) -> GgufCheckpoint:
    """The checkpoint in a GGUF file; see `GgufCheckpoint`."""
    return GgufCheckpoint(path)


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder; the first one of a split checkpoint; None if there is no GGUF file.

    Raises:
        EmbspaceError: If there are several checkpoints.
    """
    names = sorted(path.name for path in folder.glob("*.gguf"))
    firsts = [name for name in names if not (match := SHARD.fullmatch(name)) or int(match[2]) == 1] or names
    if len(firsts) > 1:
        raise errors.several_gguf(folder, firsts)
    return folder / firsts[0] if firsts else None


def _from_metadata(path: Path, part: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except Exception as reason:  # transformers raises exceptions of any class for metadata that it does not expect
        message = shorten(f"{type(reason).__name__}: {reason}", 240)
        raise errors.gguf_metadata(path, part, message) from reason


def _configuration(file: GgufFile) -> Any:
    """The configuration that transformers makes from the metadata, with the values that it leaves out."""
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    architecture = file.value("general.architecture") or ""
    spellings = {architecture, architecture.replace("moe", "_moe"), architecture.replace("-", "_")}
    if architecture in INCOMPLETE or not spellings & set(GGUF_SUPPORTED_ARCHITECTURES):
        raise errors.gguf_architecture(file.path, architecture)
    if architecture == "llama" and file.value("llama.expert_count"):
        raise errors.gguf_architecture(file.path, "llama with experts")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "metadata.gguf")
        _copy_metadata(file, copy)
        config: Any = _from_metadata(
            file.path, "configuration", lambda: AutoConfig.from_pretrained(folder, gguf_file=copy.name)
        )
    for key, attribute in UNREAD_BY_HOST.get(architecture, {}).items():
        value = file.value(f"{architecture}.{key}")
        if value is not None:
            setattr(config, attribute, value)
    if EMBEDDING in file:
        config.vocab_size = len(file[EMBEDDING])
    return config


def _copy_metadata(file: GgufFile, path: Path) -> None:
    """Write a file with the metadata, without lists of strings, and with tensors of the same names that hold one number.

    transformers reads the configuration from it within a second, and sees the tensors of all files of a split checkpoint.
    """
    import gguf

    writer = gguf.GGUFWriter(path, file.value("general.architecture"))
    for key, field in file.metadata.items():
        if key in WRITTEN or field.value is None or field.value == []:
            continue
        if isinstance(field.value, list):
            writer.add_array(key, field.value)
        else:
            writer.add_key_value(key, field.value, gguf.GGUFValueType(field.kind))
    writer.add_token_list(["", ""])  # without a list, transformers warns that it does not know the number of tokens
    for name in file:
        writer.add_tensor(name, np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _skeleton(config: Any) -> Any:
    """The model without values."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def _parameters(file: GgufFile, skeleton: Any) -> dict[str, LazyTensor]:
    """All tensors by the names of transformers. The gate and up matrices of experts are one parameter there."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = file.value("general.architecture")
    processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=skeleton.config.to_dict())
    names = get_gguf_hf_weights_map(skeleton, processor)
    experts = getattr(processor, "GGUF_MOE_WEIGHTS_PATTERN", None)
    tensors: dict[str, LazyTensor] = {}
    halves: dict[str, dict[str, LazyTensor]] = {}
    for name in file:
        stack = experts.fullmatch(name) if experts else None
        if stack and stack["name"] not in names:
            continue
        if stack and stack["w"] in ("gate", "up"):
            halves.setdefault(names[stack["name"]], {})[stack["w"]] = file[name]
        elif stack:
            tensors[names[stack["name"]]] = file[name]
        elif name in names:
            tensors[names[name]] = file[name] if name == UNEMBEDDING else _processed(file[name], name, processor)
    for name, parts in halves.items():
        if len(parts) == 2:
            tensors[name] = torch.cat([parts["gate"], parts["up"]], dim=1)  # pyright: ignore[reportArgumentType]
    return tensors


def _processed(tensor: LazyTensor, name: str, processor: Any) -> LazyTensor:
    """The tensor as transformers expects it: its values are processed when they are read."""
    process = functools.partial(_process, name=name, processor=processor)
    probe = np.broadcast_to(np.float32(-1), tensor.shape)  # has the shape, and takes no memory
    result = processor.process(weights=probe, name=name).weights
    if result is probe:
        return tensor
    like = torch.empty(result.shape, dtype=torch.promote_types(tensor.dtype, torch.float32), device="meta")
    return LazyTensor(Operation(process, (tensor,)), like)


def _process(values: Tensor, name: str, processor: Any) -> Tensor:
    array = processor.process(weights=values.float().numpy(), name=name).weights
    return torch.from_numpy(np.ascontiguousarray(array))
