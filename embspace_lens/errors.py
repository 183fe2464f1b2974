"""EmbspaceError and its messages: what was given, what is allowed, how to fix it.

Each function returns the error and its caller raises it, so that a traceback ends at the check that failed.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

Number = int | float


class EmbspaceError(ValueError):
    """The package cannot do what was asked; the message states what was given, what is allowed and how to fix it."""


class UnsupportedError(EmbspaceError):
    """Part of a model is not supported, for a reason that holds for its architecture: it would be read incorrectly."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _listed(options: Iterable[object]) -> str:
    return ", ".join(map(repr, options))


# -- arguments


def choice(name: str, value: object, options: Iterable[str]) -> EmbspaceError:
    """An argument is not one of the options; the closest option is suggested."""
    options = list(options)
    guess = get_close_matches(str(value), options, n=1)
    hint = f" Did you mean {guess[0]!r}?" if guess else ""
    return EmbspaceError(f"{name}={value!r} is not one of {_listed(options)}.{hint}")


def out_of_range(name: str, value: object, model: str, count: int, plural: str) -> EmbspaceError:
    """An index is out of range."""
    return EmbspaceError(f"{name}={value!r} is out of range: {model} has {count} {plural} (0 to {count - 1}).")


def not_selector(name: str, value: object) -> EmbspaceError:
    """A value does not select layers, heads or neurons."""
    return EmbspaceError(
        f"{name}={value!r} does not select anything. Give an int, a range, a slice, a sequence of ints, or None for all."
    )


def not_integer(
    name: str, value: object, minimum: int | None = None, maximum: int | None = None, count_of: str = ""
) -> EmbspaceError:
    """An argument is not an integer, or out of bounds."""
    bounds = _bounds(minimum, maximum)
    counted = f", the number of {count_of}" if count_of and maximum is not None else ""
    return EmbspaceError(f"{name}={value!r} is not an integer{bounds}{counted}.")


def not_number(
    name: str,
    value: object,
    above: Number | None = None,
    minimum: Number | None = None,
    maximum: Number | None = None,
) -> EmbspaceError:
    """An argument is not a finite number, or out of bounds."""
    bounds = f" above {above:g}" if above is not None else _bounds(minimum, maximum)
    return EmbspaceError(f"{name}={value!r} is not a finite number{bounds}.")


def _bounds(minimum: Number | None, maximum: Number | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum:,} to {maximum:,}"
    if minimum is not None:
        return f" of {minimum:,} or more"
    return f" up to {maximum:,}" if maximum is not None else ""


def no_heads(head: object, weight: str) -> EmbspaceError:
    """Heads are selected for a weight that has none."""
    return EmbspaceError(f"head={head!r} selects nothing: {weight} has no heads.")


def missing_extra(package: str, extra: str) -> EmbspaceError:
    """An optional package is not installed."""
    return EmbspaceError(f"This needs {package}, which is not installed: pip install 'embspace-lens[{extra}]'.")


# -- what a model has


def blocks_lack(model: str, layers: Sequence[int], sublayer: str, having: Sequence[int]) -> EmbspaceError:
    """Selected blocks have no attention, or no MLP."""
    noun = {"attn": "attention", "mlp": "MLP"}[sublayer]
    blocks = f"block {layers[0]} has" if len(layers) == 1 else f"blocks {', '.join(map(str, layers))} have"
    rest = (
        f"Blocks with one: {', '.join(map(str, having))}."
        if having
        else "No block of this model has one that can be read."
    )
    return EmbspaceError(f"{model}'s {blocks} no {noun}. {rest}")


def no_readable_blocks(model: str, is_encoder_decoder: bool) -> EmbspaceError:
    """A model has no blocks that can be read."""
    kind = "an encoder–decoder model" if is_encoder_decoder else "a model without blocks"
    return EmbspaceError(f"{model} is {kind}: only its W_E and W_U can be read.")


def no_experts(model: str, expert: object) -> EmbspaceError:
    """Experts are selected in a model that has none."""
    return EmbspaceError(f"expert={expert!r} selects nothing: {model} has no mixture of experts.")


def no_such_expert(model: str, layer: int, expert: object, experts: Sequence[int]) -> EmbspaceError:
    """A block does not have this expert."""
    listed = ", ".join(map(str, experts))
    return EmbspaceError(f"expert={expert!r} is not an expert of block {layer} of {model}. Its experts: {listed}.")


def not_gated(model: str, layer: int) -> EmbspaceError:
    """A block's MLP has no W_gate."""
    return EmbspaceError(f"{model}'s MLP in block {layer} is not gated: it has no W_gate.")


def unreadable(weight: str, model: str, reason: str) -> EmbspaceError:
    """A weight cannot be read as a matrix."""
    return EmbspaceError(
        f"{weight} of {model} cannot be read: {reason}. Load the model with real, unquantised weights."
    )


def unsupported(what: str, reason: str, verb: str = "is") -> UnsupportedError:
    """An architecture is not supported and would be read incorrectly."""
    return UnsupportedError(f"{what} {verb} not supported: {reason}.", reason)


def no_hook(model: str, hook: str) -> EmbspaceError:
    """The model has no hook point of this name."""
    return EmbspaceError(f"{model} has no hook point {hook}.")


def no_neuron_hook(model: str, layer: int) -> EmbspaceError:
    """A mixture of experts has no hook point for neurons."""
    return EmbspaceError(
        f"The mixture of experts in block {layer} of {model} has no hook point for neurons. "
        f"blocks.{layer}.hook_mlp_out holds the sum of its experts' outputs."
    )


def resid_mid_of_bridge() -> EmbspaceError:
    """An edit of hook_resid_mid on a TransformerBridge reaches the MLP alone."""
    return EmbspaceError(
        "An edit of hook_resid_mid of a TransformerBridge reaches the MLP and not the residual stream after it. "
        "Use hook='hook_attn_out'."
    )


def no_resid_post(model: str, layer: int) -> EmbspaceError:
    """Edits of the residual stream after the last block are discarded."""
    return EmbspaceError(
        f"Edits of the residual stream after the last block of {model} are discarded. "
        f"Use hook='hook_mlp_out', or a layer up to {layer - 1}."
    )


# -- vectors


def bad_width(width: int, model: str, d_model: int, what: str = "vectors") -> EmbspaceError:
    """Vectors do not have the width of the residual stream."""
    return EmbspaceError(
        f"{what} have width {width}, but {model}'s residual stream has d_model={d_model}. Are they from another model?"
    )


def not_tensor(name: str, reason: object) -> EmbspaceError:
    """Values cannot be converted to a tensor."""
    return EmbspaceError(f"{name} cannot be made a tensor: {reason}. Give a tensor, an array, or numbers.")


def not_finite(what: str) -> EmbspaceError:
    """Values are NaN or infinite."""
    return EmbspaceError(f"NaN or infinite values in {what}. They have no rank: replace them, or check the checkpoint.")


def bad_score_count(n_scores: int, model: str, d_vocab: int) -> EmbspaceError:
    """The number of scores differs from the number of tokens."""
    return EmbspaceError(f"scores have {n_scores:,} columns, but {model} has {d_vocab:,} tokens.")


def not_directions(shape: tuple[int, ...]) -> EmbspaceError:
    """Vectors are not a list of directions."""
    return EmbspaceError(f"vectors have shape {shape}. Give [n, d_model], one direction per row.")


def wrong_count_of_names(n_names: int, n_vectors: int) -> EmbspaceError:
    """The number of names differs from the number of vectors."""
    return EmbspaceError(f"names has {n_names} entries for {n_vectors} vectors. Give one name per vector.")


def repeated_name(name: object) -> EmbspaceError:
    """Two directions have the same name."""
    return EmbspaceError(
        f"names holds {name!r} more than once. Rows of the table are identified by their direction's name."
    )


def no_dictionary_side(owner: str, weight: str, side: str) -> EmbspaceError:
    """An object lacks the encoder or the decoder that was requested."""
    other = "write" if side == "read" else "read"
    return EmbspaceError(f"{owner} has no {weight}, which side={side!r} reads. Use side={other!r}.")


def not_residual(owner: str, hook: str) -> EmbspaceError:
    """A dictionary is trained on activations inside a component."""
    return EmbspaceError(
        f"{owner} was trained on {hook}, whose activations are not residual vectors. "
        "For hook_z, give W_dec @ W_O of its block."
    )


# -- tokens


def different_token_counts(model: str, n_read: int, n_write: int) -> EmbspaceError:
    """W_E and W_U have different numbers of tokens."""
    return EmbspaceError(
        f"W_E of {model} has {n_read:,} tokens and W_U has {n_write:,}. Pass vocabulary= with ids that both have."
    )


def token_not_read(token: object, n_tokens: int) -> EmbspaceError:
    """A token is outside the lens's vocabulary."""
    return EmbspaceError(
        f"token {token!r} is not among the {n_tokens:,} tokens that this lens reads. Add it to vocabulary=."
    )


def not_a_token(token: object) -> EmbspaceError:
    """A token is neither a string nor an id."""
    return EmbspaceError(f"token={token!r} is neither a string nor a token id.")


def no_tokens_to_search() -> EmbspaceError:
    """A search is for an empty list."""
    return EmbspaceError("token is an empty list. Give one or more tokens, or a vector.")


def not_a_target(value: object) -> EmbspaceError:
    """A search is for something that is neither tokens nor a vector."""
    return EmbspaceError(f"token is a {type(value).__name__}. Give a token, a list of tokens, or one vector [d_model].")


def bad_target_width(width: int, model: str, d_model: int) -> EmbspaceError:
    """A search is for a vector that does not have the width of the residual stream."""
    return EmbspaceError(
        f"token has width {width}, but {model}'s residual stream has d_model={d_model}. Is it from another model?"
    )


def not_one_vector(shape: tuple[int, ...]) -> EmbspaceError:
    """A search is for a matrix."""
    return EmbspaceError(f"token has shape {shape}. Give a token, a list of tokens, or one vector [d_model].")


def not_one_token(text: str, pieces: Sequence[str], caller: str, guess: str | None) -> EmbspaceError:
    """A string is several tokens, or none."""
    hint = f" Did you mean {guess!r}?" if guess is not None else ""
    rule = f"each string given to {caller} must be one token"
    if len(pieces) < 2:
        return EmbspaceError(f'"{text}" is not a token of this vocabulary; {rule}.{hint}')
    return EmbspaceError(f'"{text}" is {len(pieces)} tokens in this vocabulary ({_listed(pieces)}); {rule}.{hint}')


def no_tokenizer(model: str, caller: str) -> EmbspaceError:
    """Strings are given, and the model has no tokenizer."""
    return EmbspaceError(
        f"{model} has no tokenizer, so {caller} cannot look up words. "
        "Give a token id, or EmbeddingLens(model, tokenizer=…)."
    )


def bad_mask_shape(shape: tuple[int, ...], model: str, d_vocab: int) -> EmbspaceError:
    """A boolean mask does not have one entry per token."""
    return EmbspaceError(f"The token mask has shape {shape}, but {model} has {d_vocab:,} tokens. Give [{d_vocab}].")


def empty_mask(name: str, model: str, wider: tuple[str, int] | None = None) -> EmbspaceError:
    """A token mask selects nothing; `wider` is a mask that selects tokens, and how many."""
    remedy = "Use vocabulary=None, which selects all tokens."
    if wider is not None:
        remedy = f"Use vocabulary={wider[0]!r}, which selects {wider[1]:,}, or vocabulary=None for all tokens."
    return EmbspaceError(f"The token mask {name!r} selects no token of {model}. {remedy}")


# -- files and loading


def is_folder(path: object) -> EmbspaceError:
    """The path of a file to write is a folder."""
    return EmbspaceError(f"{path} is a folder. Name a file.")


def no_folder(path: object, folder: object) -> EmbspaceError:
    """The folder of a file to write does not exist."""
    return EmbspaceError(f"{path} cannot be written: {folder} is not a folder. Create it first.")


def not_written(path: object, reason: object) -> EmbspaceError:
    """A file cannot be written."""
    return EmbspaceError(f"{path} cannot be written: {reason}. Nothing was changed.")


def not_readable(path: object, reason: object) -> EmbspaceError:
    """A file does not exist, or is damaged."""
    return EmbspaceError(f"{path} cannot be read: {reason}.")


def no_config(folder: object) -> EmbspaceError:
    """A folder does not hold a model."""
    return EmbspaceError(f"{folder} holds no config.json, so it is not the folder of a model.")


def no_such_folder(folder: object) -> EmbspaceError:
    """A path to a model's folder does not exist."""
    return EmbspaceError(f"{folder} does not exist. Give a model's folder, a demo model, or the name of a hub model.")


def damaged_model(folder: object, reason: str) -> EmbspaceError:
    """A model's folder cannot be loaded."""
    return EmbspaceError(
        f"{folder} could not be loaded ({reason}). Is a file damaged or missing, or config.json wrong?"
    )


def config_is_no_object(folder: object, text: str) -> EmbspaceError:
    """A config.json holds something other than a JSON object."""
    return EmbspaceError(f"{folder} could not be loaded: its config.json is {text}, which is not a JSON object.")


def wrong_field(folder: object, field: str, value: str, expected: str) -> EmbspaceError:
    """A field of a config.json has a value of the wrong kind."""
    return EmbspaceError(f"{folder} could not be loaded: {field} in config.json is {value}, which is not {expected}.")


def unknown_architecture(name: object, architecture: object) -> EmbspaceError:
    """A configuration names an architecture that does not exist."""
    return EmbspaceError(
        f"{name} could not be loaded: its configuration names the architecture {architecture!r}, which neither transformers "
        "nor TransformerLens has."
    )


def model_is_file(path: object) -> EmbspaceError:
    """A file was given as a model."""
    return EmbspaceError(f"{path} is a file. Give the folder that holds the model's config.json and weights.")


def weights_not_safe(name: object) -> EmbspaceError:
    """A file of weights contains Python objects, which are not loaded."""
    return EmbspaceError(
        f"{name} could not be loaded: its weights are stored as Python objects, which may run code when they are read. "
        "Save the model as safetensors: load it with transformers where you trust it, and call its save_pretrained(folder)."
    )


def no_checkpoint(name: object, shards: list[str]) -> EmbspaceError:
    """A folder holds no weights, or shards without their index."""
    if shards:
        return EmbspaceError(
            f"{name} holds {shards[0]}, but no model.safetensors.index.json, which says in which file each weight is. "
            "Download or copy that file too."
        )
    return EmbspaceError(
        f"{name} holds no weights: neither model.safetensors nor model.safetensors.index.json is there."
    )


def missing_shard(name: object, shard: str, count: int, total: int) -> EmbspaceError:
    """A file of weights that the index names is not there."""
    files = f"{count} of {total} files of weights are" if count > 1 else f"one of {total} files of weights is"
    return EmbspaceError(f"{name} is not complete: {files} missing, such as {shard}. Download or copy the rest.")


def damaged_shard(file: object, reason: object) -> EmbspaceError:
    """A file of weights is truncated or damaged."""
    return EmbspaceError(f"{file} is truncated or damaged: {reason}. Download or copy it again.")


def quantization_not_read(format_name: str, formats: Sequence[str]) -> EmbspaceError:
    """A checkpoint is quantised in a format that is not read."""
    return EmbspaceError(
        f"Checkpoints in {format_name} are not read. Use a checkpoint of the model in bf16, or in one of {', '.join(formats)}."
    )


def needs_package_to_read(format_name: str, package: str, reason: object) -> EmbspaceError:
    """The package that decodes a quantised format cannot be imported."""
    return EmbspaceError(
        f"Checkpoints in {format_name} need the package {package} ({reason}): pip install 'embspace-lens[quantized]'."
    )


def missing_part_of_weight(weight: str, part: str, format_name: str) -> EmbspaceError:
    """A checkpoint lacks a tensor that a quantised weight needs."""
    return EmbspaceError(
        f"{weight} is stored in {format_name}, but its checkpoint holds no {part}, which its values depend on. "
        "Is a file missing, or is config.json of another model?"
    )


def part_of_other_shape(
    part: str, shape: tuple[int, ...], expected: tuple[int, ...], weight: str, format_name: str
) -> EmbspaceError:
    """A tensor that a quantised weight needs has a shape that does not fit the weight."""
    return EmbspaceError(
        f"{part} has shape {shape}, but {weight} in {format_name} needs {expected}. Is config.json of another model?"
    )


def unread_storage(weight: str, dtype: object, format_name: str) -> EmbspaceError:
    """A weight is stored in a precision that its checkpoint's format does not use."""
    return EmbspaceError(
        f"{weight} is stored as {str(dtype).removeprefix('torch.')}, which is not read in a checkpoint in {format_name}. "
        "Use a checkpoint of the model in bf16."
    )


def unread_quantization_setting(format_name: str, setting: str) -> EmbspaceError:
    """A quantised checkpoint has a setting under which its weights would be read incorrectly."""
    return EmbspaceError(
        f"Checkpoints in {format_name} with {setting} are not read. Use a checkpoint of the model in bf16."
    )


def unknown_protocol(url: object, reason: ImportError | None) -> EmbspaceError:
    """An address has a protocol that is not known, or whose library is not installed."""
    if reason is not None:
        return EmbspaceError(f"{url} needs a library that is not installed: {reason}.")
    return EmbspaceError(
        f"{url} is not an address of a folder of files. Give one such as hf://…, https://…, s3://… or gs://…."
    )


def not_fetched(url: object, reason: object) -> EmbspaceError:
    """A file cannot be fetched."""
    return EmbspaceError(
        f"{url} could not be fetched: {reason}. Check the address, the connection and, for private files, the login."
    )


def no_ranges(url: object) -> EmbspaceError:
    """A server sends whole files only."""
    return EmbspaceError(
        f"The server of {url} ignores range requests, so that no single weight can be fetched. "
        "Download the checkpoint and give its folder, or use another server."
    )


def no_remote_config(url: object) -> EmbspaceError:
    """A remote folder does not hold a model."""
    return EmbspaceError(
        f"{url} holds no config.json, or it may not be read. Check the address and, for private files, the login."
    )


def cache_not_written(folder: object, reason: object) -> EmbspaceError:
    """A range of a remote file cannot be written into the cache."""
    return EmbspaceError(
        f"The cache in {folder} cannot be written: {reason}. Free space there, lower its bound (EMBSPACE_LENS_CACHE_GB), "
        "or choose another folder (EMBSPACE_LENS_CACHE)."
    )


def fetching_cancelled() -> EmbspaceError:
    """The process ends while a range of a remote file is fetched."""
    return EmbspaceError("The range was not fetched, because the process ends. Read it again.")


def wrong_cache_size(variable: str, text: str) -> EmbspaceError:
    """The bound of the cache is not a number of gigabytes."""
    return EmbspaceError(f"{variable}={text!r} is not a number of gigabytes above 0.")


def not_gguf(path: object) -> EmbspaceError:
    """A file with the ending .gguf has another format."""
    return EmbspaceError(
        f"{path} is not a GGUF file: it does not begin with the letters GGUF. Download or copy it again."
    )


def gguf_type(file: object, tensor: str, quantization: str) -> EmbspaceError:
    """A GGUF file stores a tensor in a type without a dequantiser."""
    return EmbspaceError(
        f"{file} stores {tensor} as {quantization}, which the installed package gguf cannot dequantise. Update it "
        "(pip install --upgrade gguf), or quantise the model to another type, such as Q8_0."
    )


def gguf_architecture(path: object, architecture: str) -> EmbspaceError:
    """Transformers does not read an architecture from GGUF files."""
    return EmbspaceError(
        f"{path} has the architecture {architecture!r}, which transformers does not read from GGUF files in this version. "
        "Give the folder of the model's safetensors files."
    )


def gguf_metadata(path: object, part: str, reason: str) -> EmbspaceError:
    """Transformers cannot make the configuration or the tokenizer from the metadata of a GGUF file."""
    return EmbspaceError(
        f"{path}: transformers cannot make the {part} from the file's metadata ({reason}). "
        "Give the folder of the model's safetensors files."
    )


def several_gguf(folder: object, files: Sequence[str]) -> EmbspaceError:
    """A folder holds several GGUF checkpoints."""
    listed = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return EmbspaceError(f"{folder} holds {len(files)} GGUF files ({listed}). Give the path of one of them.")


def unknown_stored_dtype(file: object, dtype: object, known: Sequence[str]) -> EmbspaceError:
    """A safetensors file holds a tensor of a type that torch does not have."""
    return EmbspaceError(
        f"{file} holds a tensor of type {dtype}, which is not read. Types that are read: {', '.join(known)}."
    )


def adapter_not_read(name: object) -> EmbspaceError:
    """A folder holds an adapter beside a model."""
    return EmbspaceError(
        f"{name} holds an adapter (adapter_config.json), which is not read with offload=True. Merge it into the model and save that, "
        "or load the model with offload=False."
    )


def hub_is_offline(name: object) -> EmbspaceError:
    """A hub model is to be read while the hub may not be asked."""
    return EmbspaceError(
        f"{name} was not downloaded before, and the hub may not be asked: offline mode is on (HF_HUB_OFFLINE)."
    )


def offloaded_model(operation: str) -> EmbspaceError:
    """A function runs a model whose weights stay in its checkpoint."""
    return EmbspaceError(
        f"This model's weights stay in its checkpoint (offload=True): they can be read as tables, but the model cannot be run "
        f"or edited ({operation}). For functions that run the model, load it with offload=False."
    )


def no_offloaded_difference(name: object) -> EmbspaceError:
    """A tuned demo classifier cannot stay in its checkpoint."""
    return EmbspaceError(
        f"{name} is stored as a difference from its base model, so that its weights cannot stay in the file. "
        "Load it with offload=False; it is small."
    )


def quantized_not_loaded(name: object) -> EmbspaceError:
    """A quantised checkpoint is to be loaded."""
    return EmbspaceError(
        f"{name} is quantised: its weights can be read one by one (offload=True), but the model is not loaded. "
        "For functions that run the model, load a checkpoint of it in bf16."
    )


def address_not_loaded(url: object) -> EmbspaceError:
    """A checkpoint at an address is to be loaded."""
    return EmbspaceError(
        f"The weights at {url} can be read one by one (offload=True), but not loaded from there. Download the folder, and "
        "give its path; or give the name of a hub model."
    )


def no_hub_address(name: object) -> EmbspaceError:
    """A hub model without an organisation stays in its checkpoint."""
    return EmbspaceError(
        f"{name} is not a local folder, and to leave weights on the hub, the whole name is needed: organisation/model."
    )


def missing_weights(name: object, weight: str, count: int) -> EmbspaceError:
    """A checkpoint lacks weights, which would otherwise be random."""
    others = f" and {count - 1:,} more weights" if count > 1 else ""
    return EmbspaceError(
        f"{name} could not be loaded: its files hold no {weight}{others}, which its configuration needs. "
        "Is a file missing, or the number of layers in config.json wrong?"
    )


def weight_of_other_shape(
    name: object, weight: str, in_file: tuple[int, ...], in_model: tuple[int, ...], count: int
) -> EmbspaceError:
    """A weight in a checkpoint has another shape than the configuration states."""
    others = f", and {count - 1:,} more weights differ" if count > 1 else ""
    return EmbspaceError(
        f"{name} could not be loaded: {weight} has shape {in_file} in its file and {in_model} by its "
        f"configuration{others}. Is config.json of another model?"
    )


def no_home(path: object) -> EmbspaceError:
    """A path begins with ~ and the name of a user who has no home folder."""
    return EmbspaceError(f"{path} names the home folder of a user who does not exist. Write the path without ~.")


def other_vocabulary(model: str, d_vocab: int, n_counts: int) -> EmbspaceError:
    """Token counts of the demo models are applied to a model with another vocabulary."""
    return EmbspaceError(
        f"{model} has {d_vocab:,} tokens, and the demo models' token counts (vocabulary='frequent') are for their "
        f"{n_counts:,} tokens. Use vocabulary='words', or seen_in(texts) with your own texts."
    )


def unknown_model(name: object, demo_models: Sequence[str], reason: str) -> EmbspaceError:
    """A name is neither a demo model, a folder, nor a model of the hub."""
    return EmbspaceError(
        f"{name} could not be loaded. It is neither a demo model ({', '.join(demo_models)}) nor a local folder, "
        f"and loading it from the hub failed ({reason})."
    )


def missing_column(name: str, column: str, columns: Iterable[object]) -> EmbspaceError:
    """A table lacks a column."""
    return EmbspaceError(f"{name} has no column {column!r}. Its columns are {_listed(columns)}.")


def folder_not_made(folder: object, reason: object) -> EmbspaceError:
    """A folder cannot be created."""
    return EmbspaceError(f"The folder {folder} cannot be created: {reason}. Give another path.")


# -- weights, forward passes and demo models


def not_transformer_lens(kind: str) -> EmbspaceError:
    """The object is not a TransformerLens model."""
    return EmbspaceError(
        f"{kind} is not a TransformerLens model. Wrap it with TransformerBridge.boot_transformers(name), "
        "or use EmbeddingLens.from_pretrained(name)."
    )


def no_weight(weight: str, model: str) -> EmbspaceError:
    """The model has no embedding or no unembedding."""
    return EmbspaceError(f"{model} has no {weight}.")


def no_positions(model: str) -> EmbspaceError:
    """The model has no learned position embeddings."""
    return EmbspaceError(f"{model} has no W_pos: its positions are not learned embeddings.")


def wrong_stream_width(weight: str, model: str, width: int, d_model: int) -> EmbspaceError:
    """A projection lies between the residual stream and an embedding."""
    reason = f"its width is {width}, the residual stream has d_model={d_model}, and a projection lies between them"
    return unsupported(f"{weight} of {model}", reason)


def latent_attention(weight: str, model: str, module: str) -> EmbspaceError:
    """The layout of an attention with compressed keys and values was not checked."""
    reason = f"the layout of its multi-head latent attention ({module}) is unknown"
    return unsupported(f"{weight} of {model}", reason)


def latent_rotation(model: str) -> EmbspaceError:
    """A distance was given for a model whose rotary dimensions are not read."""
    reason = "the rotary dimensions of multi-head latent attention are not read. Omit the distance"
    return unsupported(f"A distance in {model}", reason)


def latent_hooks(hook: str, model: str) -> EmbspaceError:
    """The hook points of compressed attention have other shapes than its weights."""
    reason = "TransformerLens's hook points in multi-head latent attention do not have the shapes of its heads"
    return unsupported(f"{hook} of {model}", reason)


def falcon_hooks(hook: str, model: str) -> EmbspaceError:
    """TransformerLens splits the fused weights of this Falcon model incorrectly."""
    reason = (
        "TransformerLens splits its fused query, key and value weights incorrectly (new_decoder_architecture), so that its "
        "activations are wrong"
    )
    return unsupported(f"{hook} of {model}", reason)


def no_attribute(weight: str, model: str, module: str) -> EmbspaceError:
    """TransformerLens's module has no attribute for the weight."""
    return unsupported(f"{weight} of {model}", f"TransformerLens's {module} has no such attribute")


def unexpected_shape(weight: str, model: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """A weight does not have the shape of its kind."""
    return unsupported(f"{weight} of {model}", f"its shape is {shape}, which is not {expected}")


def unknown_storage(experts: str, module: str) -> EmbspaceError:
    """A mixture stores its experts in a way that was not checked."""
    reason = f"the way in which {module} stores them is unknown"
    return unsupported(f"{experts[0].upper()}{experts[1:]}", reason, "are")


def no_first_mlp(model: str) -> EmbspaceError:
    """The first block has no MLP."""
    return EmbspaceError(f"{model} has no MLP in its first block. Pass first_mlp=False.")


def first_mlp_not_callable(model: str) -> EmbspaceError:
    """The first MLP cannot be called as a module."""
    return EmbspaceError(f"The first MLP of {model} cannot be called by itself. Pass first_mlp=False.")


def not_rotary(model: str) -> EmbspaceError:
    """A distance was given for a model without rotary positions."""
    return unsupported(
        f"A distance in {model}",
        "it has no rotary positions. circuits.position_qk reads learned position embeddings",
    )


def unknown_rotation(model: str, architecture: str) -> EmbspaceError:
    """It is unknown which dimensions an architecture rotates together."""
    return unsupported(
        f"A distance in {model}", f"it is unknown which dimensions of a head {architecture} rotates together"
    )


def length_dependent_rotation(model: str, rope_type: str) -> EmbspaceError:
    """Rotary frequencies depend on the length of the text."""
    return unsupported(f"A distance in {model}", f"its rotation ({rope_type}) depends on the length of the text")


def gains_after_rotation(model: str) -> EmbspaceError:
    """The gains of the norms of queries and keys do not commute with the rotation."""
    return unsupported(
        f"A distance in {model}",
        "gains multiply its rotated queries and keys, so that scores depend on both positions and not on the distance alone. "
        "Omit the distance",
    )


def too_many_rotated(n_rotated: int, d_head: int) -> EmbspaceError:
    """More dimensions are rotated than a head has."""
    return unsupported("The rotation", f"{n_rotated} dimensions are rotated, and a head has {d_head}")


def not_causal(model: str) -> EmbspaceError:
    """Sampling was requested from a bidirectional model."""
    return EmbspaceError(f"Sampling needs a causal model; {model or 'this one'} is bidirectional. Pass texts instead.")


def causal_needed(model: str) -> EmbspaceError:
    """Repetitions were requested from a bidirectional model."""
    return EmbspaceError(
        f"A repetition is predicted from left to right; {model or 'this model'} is bidirectional. Use a causal model."
    )


def no_room_for_repetition(model: str, n_positions: int, n_words: int) -> EmbspaceError:
    """A sequence that is repeated has fewer than two tokens."""
    return EmbspaceError(
        f"A sequence and its repetition need 2 or more positions each and 2 or more words; {model or 'this model'} has room "
        f"for {n_positions}, and the lens reads {n_words} words. Use a longer context window or a wider vocabulary."
    )


def no_layers() -> EmbspaceError:
    """An empty selection of layers."""
    return EmbspaceError("layers selects no layer. Omit it for all layers.")


def unknown_hook_point(name: object) -> EmbspaceError:
    """The forward pass found no hook point of this name."""
    return EmbspaceError(f"The model has no such hook point: {name}")


def hook_did_not_fire(names: Sequence[str]) -> EmbspaceError:
    """Hook points exist, but the architecture does not use them."""
    return EmbspaceError(f"No activation at {', '.join(names)}: this architecture does not use that hook point.")


def single_text() -> EmbspaceError:
    """One string was given for a sequence of texts."""
    return EmbspaceError("texts is one string; give a sequence of texts, [text] for a single one.")


def not_text(index: int, kind: str) -> EmbspaceError:
    """An element of a sequence of texts is not a string."""
    return EmbspaceError(f"Text {index} has the type {kind}; texts are strings.")


def no_texts(source: object) -> EmbspaceError:
    """An object from which texts cannot be read."""
    return EmbspaceError(f"texts={source!r} holds no texts. Give a list of texts, or the path of a file.")


def not_a_file(path: object) -> EmbspaceError:
    """A path at which there is no file."""
    return EmbspaceError(f"{path} is not a file. Name a text file, or a table with a column of texts.")


def where_without_table(where: str, path: object) -> EmbspaceError:
    """A condition on rows was given for a text file."""
    return EmbspaceError(f"where={where!r} needs a table, and {path} is a text file. Omit it.")


def not_utf8(path: object, reason: object) -> EmbspaceError:
    """A text file cannot be decoded."""
    return EmbspaceError(f"{path} cannot be read as text in UTF-8: {reason}.")


def no_text(path: object, where: str | None) -> EmbspaceError:
    """A file without texts, or without texts for which a condition holds."""
    return EmbspaceError(f"{path} holds no text" + (f" where {where}." if where else "."))


def labels_without_table(path: object) -> EmbspaceError:
    """Labelled texts were requested from a text file."""
    return EmbspaceError(f"{path} is not a table. Labelled texts are read from Parquet, JSON lines or CSV.")


def too_few_classes(path: object, only: str | None, where: str | None) -> EmbspaceError:
    """Labelled texts are missing, or all belong to one class."""
    content = "no labelled text" if only is None else f"only {only!r}"
    return EmbspaceError(f"{path} holds {content}" + (f" where {where}" if where else "") + "; two classes are needed.")


def damaged_table(path: object, reason: object) -> EmbspaceError:
    """A table cannot be parsed."""
    return EmbspaceError(f"{path} cannot be read ({reason}). It is damaged, or its name has the wrong ending.")


def bad_condition(where: str, path: object, reason: object) -> EmbspaceError:
    """A condition that pandas cannot evaluate."""
    return EmbspaceError(
        f"where={where!r} is not a condition on the rows of {path}: {reason}. Write it as in \"split == 'test'\"."
    )


def bad_labels(labels: list[str]) -> EmbspaceError:
    """A classifier with fewer than two different classes."""
    return EmbspaceError(f"labels={labels!r} does not name two or more different classes.")


def other_states(path: object) -> EmbspaceError:
    """A cached file holds the states of other texts, other layers or another model."""
    return EmbspaceError(
        f"{path} was computed from other texts, other layers or another model. Name another folder, or remove it."
    )


def damaged_states(path: object, reason: object) -> EmbspaceError:
    """A cached file cannot be read."""
    return EmbspaceError(f"{path} cannot be read ({reason}). Remove it; it is then computed again.")


def no_classifier(folder: object, reason: object) -> EmbspaceError:
    """The files of a classifier are missing or damaged."""
    return EmbspaceError(f"{folder} holds no classifier that can be read: {reason}")


def no_block_list(model: str, n_layers: int) -> EmbspaceError:
    """The blocks of a Hugging Face model cannot be found."""
    return EmbspaceError(
        f"{model} has no list of {n_layers} blocks, so it cannot be tuned. Choose a causal language model."
    )


def no_special_token(tokenizer: str) -> EmbspaceError:
    """A tokenizer has no special token that begins or ends texts."""
    return EmbspaceError(
        f"The tokenizer {tokenizer} has no bos_token and no eos_token. Set one of them and save it again."
    )


def not_a_difference(name: str, base: str, weight: str) -> EmbspaceError:
    """The weights of a difference are not those of its base."""
    return EmbspaceError(f"{name} is not a difference of {base}: {weight} does not fit.")


def too_little_text(count: int, unit: str, needed: int, purpose: str) -> EmbspaceError:
    """Training texts are too short."""
    return EmbspaceError(f"The texts have {count:,} {unit}, and {purpose} needs {needed:,}. Give more text.")


def other_settings(folder: object) -> EmbspaceError:
    """A folder holds a run with another configuration."""
    return EmbspaceError(f"{folder} holds a run with other settings. Name another folder, or remove it.")


def not_divisible(name: str, value: int, divisor_name: str, divisor: int) -> EmbspaceError:
    """A width is not a multiple of a count."""
    return EmbspaceError(f"{name}={value} is not a multiple of {divisor_name}={divisor}.")


# -- circuits and interventions


def too_few_positions(model: str, n_positions: int, needed: int) -> EmbspaceError:
    """A model has too few positions to distinguish the own, the previous and the first position."""
    return EmbspaceError(f"{model} has {n_positions} positions; position_heads needs {needed} or more.")


def bad_frequencies(shape: tuple[int, ...], d_vocab: int) -> EmbspaceError:
    """Token frequencies have a wrong shape, or are negative or not finite."""
    return EmbspaceError(
        f"frequencies have shape {shape} or hold values below 0. Give one number of 0 or more for each of {d_vocab:,} tokens."
    )


def zero_frequencies() -> EmbspaceError:
    """Token frequencies are all zero."""
    return EmbspaceError(
        "frequencies are 0 for every token that this lens reads. Give a positive number for at least one of them."
    )


def not_relations(value: object) -> EmbspaceError:
    """Relations are not a mapping."""
    return EmbspaceError(f"relations is a {type(value).__name__}. Give a mapping from names to pairs: {{name: pairs}}.")


def no_pairs(relation: object) -> EmbspaceError:
    """A relation has no pairs."""
    return EmbspaceError(f"The relation {relation!r} has no pairs. Give [(source, target), …] of words or token ids.")


def no_scored_relation(names: Sequence[str], min_pairs: int) -> EmbspaceError:
    """All relations have too few pairs for a score."""
    have = "has" if len(names) == 1 else "have"
    return EmbspaceError(
        f"No relation has a score: {_listed(names)} {have} fewer than {min_pairs} pairs of words that are single tokens of this "
        "lens. Give more pairs, or read more tokens."
    )


def no_json_files(folder: object) -> EmbspaceError:
    """A folder has no relation files."""
    return EmbspaceError(f"{folder} contains no .json file. Give a folder of relation files, or the files.")


def not_relation_file(file: object) -> EmbspaceError:
    """A file has another format than relations."""
    return EmbspaceError(
        f"{file} does not hold relations. Write [[source, target], …], or {{name: [[source, target], …]}}."
    )


def repeated_relation(file: object, name: str) -> EmbspaceError:
    """Two relations have the same name."""
    return EmbspaceError(
        f"{file} holds the relation {name!r}, but another file has one of this name. Rename one of them."
    )


def not_table(name: str, value: object, example: str) -> EmbspaceError:
    """An argument is not a dataframe."""
    return EmbspaceError(f"{name} is a {type(value).__name__}. Give a table, such as {example}.")


def singular_directions_given() -> EmbspaceError:
    """A table of singular directions was given where components of the model are needed."""
    return EmbspaceError(
        "df holds singular directions, which are vectors and not components of the model. Compute the vectors, give them "
        "names in a column `direction` next to `layer`, and pass vectors={name: vector}."
    )


def rows_without_units(columns: Iterable[object], suffix: str) -> EmbspaceError:
    """A table's columns name no neurons, heads or sub-heads."""
    return EmbspaceError(
        f"rows has the columns {_listed(columns)}. read() needs `layer{suffix}`, and `neuron{suffix}`, `head{suffix}`, or "
        f"`head{suffix}` and `subhead{suffix}`. For columns such as neuron_a, pass suffix='_a'. Singular directions are read "
        "by lens.singular(), other vectors by lens.directions()."
    )


def row_without_unit(layer: int) -> EmbspaceError:
    """A row of a table names no neuron, head or sub-head."""
    return EmbspaceError(f"A row of rows (layer {layer}) names no neuron, head or sub-head. Remove such rows.")


def names_of_mapping() -> EmbspaceError:
    """Names were given for vectors that have names."""
    return EmbspaceError(
        "vectors is a mapping, whose keys are the names. Give names= only with vectors that have none."
    )


def not_serialisable(name: str) -> EmbspaceError:
    """A lens is serialised, for example to send it to another process."""
    return EmbspaceError(
        f"The lens of {name} cannot be serialised or sent to another process: it refers to a TransformerLens model. "
        "Make the lens in each process, with EmbeddingLens.from_pretrained(name, …). copy.copy and copy.deepcopy work."
    )


def no_component_columns(columns: Iterable[object]) -> EmbspaceError:
    """A table's columns name no components."""
    return EmbspaceError(
        f"df has the columns {_listed(columns)}. It needs `layer`, and `neuron`, `head`, `head` and `subhead`, `direction` "
        "or `factor`. df.assign(layer=…) adds a layer."
    )


def not_whole_number(name: str, value: object, row: object, table: str = "df") -> EmbspaceError:
    """A key of a table is not a whole number."""
    return EmbspaceError(f"{table} has {name}={value!r} in row {row!r}, which is not a whole number. Remove such rows.")


def repeated_columns(table: str, names: Iterable[object]) -> EmbspaceError:
    """Several columns of a table have the same name."""
    return EmbspaceError(f"{table} has several columns of the name {_listed(names)}. Rename or drop them.")


def row_without_component(layer: int) -> EmbspaceError:
    """A row of a table names no component."""
    return EmbspaceError(f"A row of df (layer {layer}) names no neuron, head or direction. Remove such rows.")


def missing_vectors() -> EmbspaceError:
    """Rows name directions, and their vectors are missing."""
    return EmbspaceError(
        "The rows name directions or factors, but no vectors are given. Pass vectors={name: vector}, or a tensor with one row "
        "per factor."
    )


def missing_vector(name: object) -> EmbspaceError:
    """One direction's vector is missing."""
    return EmbspaceError(f"vectors has no vector for {name!r}. Add one, or leave out the rows that name it.")


def no_direction(name: object) -> EmbspaceError:
    """A vector is zero or not finite."""
    return EmbspaceError(f"The vector of {name!r} is zero or not finite, so it has no direction.")


def shared_heads(hook: str) -> EmbspaceError:
    """Several values were given for one number that query heads share."""
    return EmbspaceError(
        f"mode gives several values for the same number: query heads share key and value heads at {hook}. Name one head of "
        "each group."
    )


def mode_does_not_fit(shape: tuple[int, ...], needed: tuple[int, ...], hook: str) -> EmbspaceError:
    """Values for an ablation do not broadcast to the activations."""
    return EmbspaceError(f"mode has shape {shape}, which does not broadcast to the activations {needed} at {hook}.")


def bad_mode_shape(shape: tuple[int, ...], n_components: int, are_heads: bool) -> EmbspaceError:
    """Values for an ablation are not one per component."""
    needed = f"[{n_components}, d_head]" if are_heads else f"[{n_components}]"
    return EmbspaceError(
        f"mode has shape {shape} for {n_components} components. Give {needed}, with optional batch and position dimensions in "
        "front, or a single number. Heads need a separate call from other components."
    )


def not_one_vector_per_layer(shape: tuple[int, ...], n_layers: int) -> EmbspaceError:
    """Steering vectors do not match the layers."""
    return EmbspaceError(f"vectors have shape {shape} for {n_layers} layers. Give [d_model], or one row per layer.")


def positions_in_expert() -> EmbspaceError:
    """Positions were given for neurons of an expert."""
    return EmbspaceError(
        "An expert receives only the tokens that are routed to it, without their positions. Leave out positions."
    )


def no_positions_in_expert(hook: str) -> EmbspaceError:
    """Activations of an expert have no positions."""
    return EmbspaceError(
        f"Activations at {hook} are not read: an expert receives only the tokens that are routed to it, without their positions."
    )


def bad_positions(positions: object, n_tokens: int) -> EmbspaceError:
    """Positions are not indices of the tokens."""
    return EmbspaceError(f"positions={positions!r} are not indices of {n_tokens} tokens (0 to {n_tokens - 1}).")


def not_token_ids(dtype: str, shape: tuple[int, ...]) -> EmbspaceError:
    """Tokens are neither ids nor texts."""
    return EmbspaceError(f"tokens are {dtype} of shape {shape}. Give integer ids [batch, pos], or a list of texts.")


def longer_than_context(n_tokens: int, model: str, n_ctx: int) -> EmbspaceError:
    """A sequence is longer than the context window."""
    return EmbspaceError(f"tokens are {n_tokens} long, but the context window of {model} is {n_ctx}. Shorten them.")


def channels_not_written(weight: str) -> EmbspaceError:
    """Channels of a reading weight were given, which a neuron does not write."""
    return EmbspaceError(
        f"These are channels of {weight}. Only channels of W_out can be removed from a neuron's output."
    )


def channels_not_read(weight: str) -> EmbspaceError:
    """Channels of a writing weight were given, which a neuron does not read."""
    return EmbspaceError(
        f"These are channels of {weight}. Only channels of W_in or W_gate can be removed from a neuron's input; "
        "channel_effects removes those of W_out."
    )


def too_few_texts() -> EmbspaceError:
    """An interval over texts needs two of them."""
    return EmbspaceError("Fewer than two texts have a token. Give more texts.")


def not_result(function: str, value: object, needed: str) -> EmbspaceError:
    """A value is not a result of TransformerLens's tool."""
    return EmbspaceError(f"{function} takes {needed}; this is a {type(value).__name__}.")


def axes_do_not_fit(shape: tuple[int, ...], axes: object, options: Iterable[str]) -> EmbspaceError:
    """Axes do not name the dimensions of a tensor."""
    return EmbspaceError(f"The tensor has shape {shape}, and axes={axes!r}. Name {len(shape)} of {', '.join(options)}.")


def repeated_axis(axes: Sequence[str]) -> EmbspaceError:
    """Two dimensions have the same name."""
    return EmbspaceError(f"axes={tuple(axes)!r} name the same dimension twice.")


def unknown_patch_types(count: int) -> EmbspaceError:
    """A stack of patches has an unknown number of types."""
    return EmbspaceError(f"patch_type has {count} types. TransformerLens stacks 5 (patches of heads) or 3 (of blocks).")


def lens_needed_for_shared_heads() -> EmbspaceError:
    """Query heads seem to share key-value heads, and no lens says which."""
    return EmbspaceError(
        "Patches of the last head's keys and values have no effect, so query heads seem to share key-value heads. Pass lens=…"
    )


def not_composition_scores(scores: object) -> EmbspaceError:
    """Scores have another shape than composition scores."""
    shape = f" of shape {tuple(shape)}" if (shape := getattr(scores, "shape", None)) is not None else ""
    return EmbspaceError(
        f"scores is a {type(scores).__name__}{shape}. Give CompositionScores, or a tensor [layer, head, layer, head]."
    )


def bad_attribution_shape(shape: tuple[int, ...]) -> EmbspaceError:
    """An attribution has too many dimensions."""
    return EmbspaceError(
        f"The attribution has shape {shape}. It may have dimensions for labels, examples and positions."
    )


def unknown_host_label(label: str) -> EmbspaceError:
    """A label of an attribution is not one of TransformerLens's."""
    return EmbspaceError(f"label {label!r} is not a known label of TransformerLens, such as 'L3H7' or '3_attn_out'.")


def no_keys() -> EmbspaceError:
    """No columns identify a component."""
    return EmbspaceError("on is empty. Give the keys of a component, such as ('layer', 'head').")


def column_not_numeric(name: str, column: str, dtype: object) -> EmbspaceError:
    """A column does not hold numbers."""
    return EmbspaceError(f"Column {column!r} of {name} has dtype {dtype}. Name a column of numbers in scores=.")


def too_few_components(n_components: int, minimum: int) -> EmbspaceError:
    """Two tables share too few components."""
    return EmbspaceError(
        f"{n_components} components are in both tables; a rank correlation needs at least {minimum}. Do the keys have the same "
        "types in both?"
    )


def constant_score(name: str, n_components: int) -> EmbspaceError:
    """A score is the same for all components."""
    return EmbspaceError(f"The {name} score is the same for all {n_components} components, so it has no ranks.")


# -- comparing models and evidence


def not_a_lens(value: object) -> EmbspaceError:
    """A function that compares two lenses was given something else."""
    return EmbspaceError(f"{type(value).__name__} is not an EmbeddingLens. Wrap the model: EmbeddingLens(model).")


def few_shared_tokens(a: str, b: str, n_shared: int, n_a: int, n_b: int, minimum: int) -> EmbspaceError:
    """Two lenses share too few tokens."""
    return EmbspaceError(
        f"{a} and {b} share {n_shared:,} of the {n_a:,} and {n_b:,} tokens that their lenses read. A comparison needs "
        f"{minimum} or more. Read more tokens (vocabulary=None), or compare models with the same tokenizer."
    )


def tokens_not_comparable(without: str, n_without: int, other: str, n_other: int, has_tokenizer: bool) -> EmbspaceError:
    """A model has no tokenizer, so its tokens cannot be compared with those of another model."""
    tokenizer = "a tokenizer" if has_tokenizer else "no tokenizer either"
    return EmbspaceError(
        f"{without} has {n_without:,} tokens and no tokenizer; {other} has {n_other:,} tokens and {tokenizer}. "
        "Their tokens cannot be matched. Give EmbeddingLens(model, tokenizer=…)."
    )


def different_widths(a: str, d_a: int, b: str, d_b: int) -> EmbspaceError:
    """Residual streams of different widths are compared coordinate by coordinate."""
    return EmbspaceError(
        f"space='residual' compares coordinates, but {a} has d_model={d_a} and {b} has d_model={d_b}. "
        "Use space='embedding', which takes models of any width."
    )


def no_common_weight(a: str, b: str, reason: object = "") -> EmbspaceError:
    """There is no weight that can be read in both models."""
    reason = f" {reason}" if reason else ""
    return EmbspaceError(f"{a} and {b} have no selected weight that can be read in both.{reason}")


def not_single(name: str, value: object, what: str) -> EmbspaceError:
    """An argument selects several things, or none, where exactly one is needed."""
    return EmbspaceError(f"{name}={value!r} does not select exactly one {what}. Give one.")


def too_many_pairs(n_a: int, n_b: int, maximum: int) -> EmbspaceError:
    """Two layers have too many neurons for a one-to-one assignment."""
    return EmbspaceError(
        f"{n_a:,} × {n_b:,} neurons are more than the {maximum:,} pairs that can be matched one to one. "
        "Give one_to_one=False for nearest partners."
    )


def not_tuned_from(after: str, before: str, reason: str) -> EmbspaceError:
    """Two models are subtracted, but one was not fine-tuned from the other."""
    return EmbspaceError(
        f"{after} was not fine-tuned from {before}: {reason}. Give the model from which {after} was fine-tuned."
    )


def words_are_string() -> EmbspaceError:
    """A list of words is one string."""
    return EmbspaceError("positive and negative are lists of words, but one of them is a string.")


def too_few_words(name: str, n_words: int, minimum: int) -> EmbspaceError:
    """Too few words of a list are tokens of the lens."""
    return EmbspaceError(
        f"{n_words} of the {name} words are tokens that this lens reads. Give {minimum} or more, or read more tokens "
        "(vocabulary=None)."
    )


def not_pooled_head(value: object) -> EmbspaceError:
    """A classifier's head is of another class."""
    return EmbspaceError(
        f"{type(value).__name__} is not a PooledHead, which averages hidden states over tokens and scores classes."
    )


def bad_translation_width(end: str, width: int, model: str, d_model: int, make: str) -> EmbspaceError:
    """A translation does not have the width of one of its two models."""
    return EmbspaceError(
        f"The translation's {end} has width {width}, but {model} has d_model={d_model}. Make it with {make}."
    )


def no_stitched_hook(name: str, others: Sequence[str]) -> EmbspaceError:
    """A stitched model has no hook point of this name."""
    return EmbspaceError(
        f"{name!r} is not a hook point of a stitched model. Its hook points begin with 'recipient.' or 'donor.', or are "
        f"{_listed(others)}."
    )


def block_not_run(name: str, half: str, blocks: Sequence[int]) -> EmbspaceError:
    """A hook point is in a block that the stitched model does not run."""
    listed = ", ".join(map(str, blocks)) or "none"
    return EmbspaceError(f"{name!r} is in a block that does not run. Blocks of the {half} that run: {listed}.")


def unreadable_stitched_model(folder: object, reason: object) -> EmbspaceError:
    """The files of a stitched model are missing or damaged."""
    return EmbspaceError(f"{folder} has no stitched model that can be read ({reason}). Save it again.")


def stitched_with_other(folder: object, saved: str, given: str) -> EmbspaceError:
    """A saved stitched model is loaded with a model other than its original recipient or donor."""
    return EmbspaceError(f"{folder} was stitched with {saved}, not with {given}. Give the lens of {saved}.")


def no_donors() -> EmbspaceError:
    """`donors` is empty or not a mapping."""
    return EmbspaceError("donors must map at least one name to a pair (lens, head).")


def no_labelled_texts() -> EmbspaceError:
    """There is no text to classify."""
    return EmbspaceError("texts holds no texts to classify. Give a sequence of texts, and their labels.")


def unequal_lengths(n_texts: int, n_labels: int) -> EmbspaceError:
    """The number of labels differs from the number of texts."""
    return EmbspaceError(f"There are {n_texts:,} texts and {n_labels:,} labels. Give one label per text.")


def one_class(n_texts: int, label: object) -> EmbspaceError:
    """All texts have the same label."""
    return EmbspaceError(
        f"All {n_texts:,} texts have the label {label!r}. Accuracy needs texts of two or more classes."
    )


def unknown_class_label(label: object, donor: str, labels: Sequence[str]) -> EmbspaceError:
    """A text's label is not a class of the head."""
    return EmbspaceError(f"label {label!r} is not a class of {donor}'s head. Its classes: {', '.join(labels)}.")


def reserved_inverse(name: str) -> EmbspaceError:
    """A map of a sweep has the name of a control."""
    return EmbspaceError(f"inverse holds {name!r}, which is the name of a control. Give the map another name.")


def other_sweep(path: object) -> EmbspaceError:
    """A checkpoint belongs to a sweep with other arguments."""
    return EmbspaceError(
        f"{path} is the checkpoint of a sweep with other arguments. Give another path, or remove the file."
    )


def nothing_to_measure(model: str, names: Sequence[str]) -> EmbspaceError:
    """No selected block has a weight that can be measured."""
    return EmbspaceError(f"No selected block of {model} has {' or '.join(names)}. Select other layers.")


def final_norm_is_folded(model: str) -> EmbspaceError:
    """States were to be scored behind the final norm with a lens that already folds its gain."""
    return EmbspaceError(
        f"final_norm=True needs raw weights: the lens of {model} folds norms. Give EmbeddingLens(…, fold_ln=False)."
    )


def no_expert_activations(model: str, layer: int, weight: str) -> EmbspaceError:
    """The activations of a mixture's experts have no hook point."""
    return EmbspaceError(
        f"{weight} of block {layer} of {model} cannot be measured: the activations of a mixture's experts have no hook "
        "point. Measure W_V and W_O."
    )


def hooks_not_fired(model: str, hooks: Sequence[str]) -> EmbspaceError:
    """A hook point exists, but it does not fire."""
    return EmbspaceError(
        f"No activation at {', '.join(hooks)} of {model}: the hook point did not fire. Select other weights."
    )


def bad_activation_width(model: str, hook: str, weight: str, n_weights: int) -> EmbspaceError:
    """A hook point has more activations than the weight has directions."""
    return EmbspaceError(
        f"{hook} of {model} holds more activations than {weight} has directions ({n_weights:,}). Select other weights."
    )


def no_tokens() -> EmbspaceError:
    """The texts have no tokens."""
    return EmbspaceError("texts holds no tokens. Give one text or more.")


def not_several_vectors(name: str, shape: tuple[int, ...]) -> EmbspaceError:
    """Vectors are not a list of two directions or more."""
    return EmbspaceError(f"vectors {name!r} have shape {shape}. Give [n, d_model] with n of 2 or more.")


def reserved_source(name: str) -> EmbspaceError:
    """Vectors have the name of a built-in source."""
    return EmbspaceError(f"vectors holds the name {name!r}, which is a source of this table already. Use another name.")


# -- factors and their site


def factor_input_shape(name: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """Hidden states, directions, warm-start codes or their weights have the wrong shape."""
    return EmbspaceError(f"{name} has shape {shape}. Expected {expected}.")


def wrong_code_count(shape: tuple[int, ...], n_factors: int) -> EmbspaceError:
    """The number of codes differs from the number of factors."""
    return EmbspaceError(
        f"codes has shape {shape}, but the dictionary has {n_factors} factors. Expected [..., {n_factors}]."
    )


def too_large_for_float32(name: str, largest: float, limit: float) -> EmbspaceError:
    """Values are so large that their squares overflow in float32."""
    return EmbspaceError(
        f"The largest absolute value of {name} is {largest:.2g}; the limit is {limit:.0e}, because larger values overflow "
        "when they are squared in float32. Rescale them."
    )


def negative_weights() -> EmbspaceError:
    """Weights of hidden states are negative or not finite."""
    return EmbspaceError("weight contains negative, NaN or infinite values. Pass finite weights of 0 or more.")


def texts_without_tokens() -> EmbspaceError:
    """No text contains a token."""
    return EmbspaceError("texts contain no tokens. Pass at least one text with a token in it.")


def texts_read_once(epochs: int) -> EmbspaceError:
    """Several epochs were requested of an iterator."""
    return EmbspaceError(
        f"epochs={epochs}, but texts is an iterator, which can be read only once. Pass a list, a dataset or a file, or epochs=1."
    )


def no_factors_file(path: object) -> EmbspaceError:
    """A file of factors does not exist."""
    return EmbspaceError(f"{path} does not exist. Pass the folder to which the factors were saved.")


def other_kind_of_file(path: object, expected: str, actual: object) -> EmbspaceError:
    """A safetensors file has another architecture."""
    return EmbspaceError(f"{path} has architecture {actual!r}. Expected {expected!r}.")


def damaged_factors_file(path: object, reason: object) -> EmbspaceError:
    """A file of factors cannot be read."""
    return EmbspaceError(f"{path} cannot be read: {reason}. It is damaged or not a safetensors file.")


def incomplete_dictionary(folder: object) -> EmbspaceError:
    """Saved factors lack their directions or their l1."""
    return EmbspaceError(f"{folder} does not contain a complete dictionary. Save it again with Factors.save.")


def incomplete_fit(path: object, reason: object) -> EmbspaceError:
    """A saved FactorFitter lacks a part."""
    return EmbspaceError(f"{path} does not contain a complete fit ({reason}). Start a new fit.")


def not_a_checkpoint(path: object) -> EmbspaceError:
    """A file has the name of a checkpoint, but other contents."""
    return EmbspaceError(f"{path} is not a checkpoint of fit_factors. Pass another folder, or delete this file.")


def checkpoint_of_other_fit(folder: object, options: Sequence[str]) -> EmbspaceError:
    """A checkpoint was made with other options, or with another model."""
    return EmbspaceError(
        f"{folder} contains the checkpoint of another fit; these options differ: {', '.join(options)}. "
        "Pass another folder, or delete this one."
    )


def checkpoint_of_other_texts(folder: object) -> EmbspaceError:
    """A checkpoint was made from other texts."""
    return EmbspaceError(
        f"{folder} contains the checkpoint of a fit to other texts. Pass another folder, or delete this one."
    )


def unreadable_checkpoint(folder: object, reason: object) -> EmbspaceError:
    """A checkpoint is damaged."""
    return EmbspaceError(
        f"The checkpoint in {folder} cannot be read: {reason}. Pass another folder, or delete this one."
    )


def not_a_saliency_checkpoint(path: object, reason: object) -> EmbspaceError:
    """A file that should hold finished contexts of saliency cannot be read."""
    return EmbspaceError(
        f"{path} is not a checkpoint of saliency, or is damaged: {reason}. Pass another file, or delete this one."
    )


def table_lacks_column(name: str, column: str, source: str) -> EmbspaceError:
    """A table lacks a column that the function needs."""
    return EmbspaceError(f"{name} has no column {column!r}. Pass a table of {source}.")


def one_layer_importance() -> EmbspaceError:
    """The importance table has a single layer, so factors have no level."""
    return EmbspaceError("importance has only one layer. Levels need two layers or more.")


def factor_not_in_dictionary(name: str, factor: int, n_factors: int) -> EmbspaceError:
    """A table has rows of a factor that the dictionary does not have."""
    return EmbspaceError(
        f"{name} has rows of factor {factor}, but the dictionary has {n_factors} factors. Was the table made from another one?"
    )


def example_not_in_texts(example: int, n_texts: int) -> EmbspaceError:
    """A context refers to a text that was not passed."""
    return EmbspaceError(
        f"contexts refers to text {example}, but there are {n_texts} texts. Pass the texts from which contexts was made."
    )


def pos_not_in_text(example: int, pos: int, positions: list[int]) -> EmbspaceError:
    """A context refers to a position that has no token of its text."""
    allowed = (
        f"whose tokens have the positions {positions[0]} to {positions[-1]}" if positions else "which has no tokens"
    )
    return EmbspaceError(
        f"contexts refers to position {pos} of text {example}, {allowed}. Pass the texts from which contexts was made."
    )


def other_target_token(example: int, pos: int) -> EmbspaceError:
    """The target of a context is another token in the text that was passed."""
    return EmbspaceError(
        f"The token at position {pos} of text {example} is not the target token in contexts. Pass the texts from which contexts was made."
    )


def no_replacement_token() -> EmbspaceError:
    """The tokenizer has no special token with which saliency could replace tokens."""
    return EmbspaceError(
        "The tokenizer has no mask, unknown, end-of-text or padding token. Pass a token, such as replacement=' the'."
    )


def word_not_in_sentences(word: str) -> EmbspaceError:
    """A word does not occur in the tagged sentences."""
    return EmbspaceError(f"The word {word!r} does not occur in sentences. Words are compared in lower case.")


def no_word_with_two_tags(at_least: int) -> EmbspaceError:
    """No word occurs often enough with two tags."""
    return EmbspaceError(
        f"No word has two tags with {at_least} occurrences each. Lower at_least, or pass more sentences."
    )


def too_few_occurrences() -> EmbspaceError:
    """No word has both senses in the training half and in the held-out half."""
    return EmbspaceError(
        "No word has at least two occurrences of both senses in the training half and in the held-out half. "
        "Pass more sentences."
    )


def not_a_rule(rule: object) -> EmbspaceError:
    """A rule for contexts is neither an expression nor a function."""
    return EmbspaceError(
        f"rule={rule!r} is not a rule. Pass a regular expression, or a function of the text before the target, the target, and "
        "the text after it."
    )


def bad_expression(rule: object, reason: object) -> EmbspaceError:
    """A rule for contexts is not a regular expression."""
    return EmbspaceError(
        f"rule={rule!r} is not a regular expression: {reason}. Escape characters such as ( with a backslash."
    )


def not_one_marked_word(sentence: str) -> EmbspaceError:
    """A constructed sentence does not have exactly one marked word."""
    return EmbspaceError(f"{sentence!r} does not have exactly one marked word. Put « and » around one word.")


def marked_word_beyond_context(sentence: str) -> EmbspaceError:
    """The marked word of a constructed sentence is beyond the model's context length."""
    return EmbspaceError(
        f"The marked word of {sentence!r} is beyond the model's context length. Pass a shorter sentence."
    )


def texts_without_model() -> EmbspaceError:
    """The site needs a model to read texts."""
    return EmbspaceError(
        "texts needs a model that reads them. Pass model=, or pass seen= with the result of activity()."
    )


def site_path_is_file(path: object) -> EmbspaceError:
    """The site's folder is a file."""
    return EmbspaceError(f"{path} is a file. Pass a folder for the site.")


def not_a_site(path: object) -> EmbspaceError:
    """The site's folder contains other files."""
    return EmbspaceError(
        f"{path} contains files that are not a site of factors. Pass a new folder; nothing was changed."
    )


def no_parent_folder(path: object, parent: object) -> EmbspaceError:
    """The parent of the site's folder does not exist."""
    return EmbspaceError(f"{path} cannot be created, because {parent} is not a folder. Create it first.")


def site_not_written(path: object, reason: object) -> EmbspaceError:
    """Writing the site failed."""
    return EmbspaceError(f"{path} cannot be written: {reason}. Nothing was changed.")


# -- display, plots and reports


def not_a_table(columns: Sequence[str]) -> EmbspaceError:
    """A frame is not a table of this package."""
    return EmbspaceError(
        "This is not one of EmbeddingLens's tables: it lacks token_index, token_string and score, or pairs of tokens. "
        f"Its columns are {_listed(columns[:12]) or 'none'}."
    )


def wrong_kind(caller: str, accepted: Sequence[str], given: str) -> EmbspaceError:
    """A table is of another kind than the function accepts."""
    return EmbspaceError(f"{caller} takes a table of {', '.join(accepted)}; this is a table of {given}.")


def missing_columns(caller: str, missing: Sequence[str]) -> EmbspaceError:
    """A table lacks columns that a plot needs."""
    noun = "a column" if len(missing) == 1 else "columns"
    return EmbspaceError(f"{caller} needs {noun} {_listed(missing)}, which this table does not have.")


def missing_samples(caller: str, missing: Sequence[str]) -> EmbspaceError:
    """A table lacks rows of a sample."""
    return EmbspaceError(
        f"{caller} needs rows of the samples {_listed(missing)}. Pass the whole table of repetition_loss."
    )


def empty_table() -> EmbspaceError:
    """A table without rows was given to a plot."""
    return EmbspaceError("The table is empty: there is nothing to draw.")


def too_many_groups(caller: str, limit: int, noun: str, count: int, remedy: str) -> EmbspaceError:
    """A table holds more neurons, heads, vectors or factors than a plot has room for."""
    return EmbspaceError(f"{caller} draws at most {limit} {noun} at a time, and this table holds {count:,}. {remedy}")


def not_plane_arguments(name: str, value: object) -> EmbspaceError:
    """`plot_plane` was given something other than a lens, and vectors or a table."""
    return EmbspaceError(
        f"{name}={type(value).__name__} is not what plot_plane(lens, what) takes: an EmbeddingLens, and vectors ([d_model] or "
        "[n, d_model]) or a table of neurons(), subheads(), singular() or directions()."
    )


def not_numeric(caller: str, column: str) -> EmbspaceError:
    """A column to be drawn does not hold numbers."""
    return EmbspaceError(f"{caller} draws numbers, and column {column!r} does not hold numbers.")


def no_finite_number(column: str) -> EmbspaceError:
    """All values of a column to be drawn are NaN or infinite."""
    return EmbspaceError(f"Column {column!r} holds no finite number.")


def several_weights(caller: str, weights: Sequence[str]) -> EmbspaceError:
    """A plot of one weight was given a table of several."""
    return EmbspaceError(f"{caller} draws one weight, and this table holds {', '.join(weights)}. Select one of them.")


def several_values_per_head(column: str) -> EmbspaceError:
    """A map of heads was given several rows of one head."""
    return EmbspaceError(
        f"A head has several values of {column!r}. Give one row per head, for example by df.groupby(['layer', 'head'])."
    )


def several_values_per_position(column: str) -> EmbspaceError:
    """A map of positions was requested for a table with several values for a pair of positions."""
    return EmbspaceError(
        f"The table has several values of {column} for the same head, query and key position. Average them first, or add a column model."
    )


def too_few_tokens(caller: str, minimum: int, count: int) -> EmbspaceError:
    """There are too few different tokens to lay out."""
    return EmbspaceError(f"{caller} needs {minimum} tokens or more, and was given {count}. Raise k.")


def no_weights_to_draw() -> EmbspaceError:
    """An empty list of weights was given to a plot."""
    return EmbspaceError("weights=[] leaves nothing to draw. Name a weight, or give None for all.")


def alignment_missing() -> EmbspaceError:
    """The table of an alignment is drawn without the alignment."""
    return EmbspaceError(
        "The plot of an alignment also needs the names and the assignment. Call alignment.plot(), "
        "or plot(alignment=alignment) on its table."
    )


def word_not_read(word: str, n_tokens: int) -> EmbspaceError:
    """A word is a token that the lens does not read."""
    return EmbspaceError(
        f"word={word!r} is not among the {n_tokens:,} tokens that this lens reads. "
        "Choose another word, or a lens that reads all tokens."
    )


# -- command line


def unexpected(kind: str, message: str) -> EmbspaceError:
    """An exception of another library, or a defect of this one."""
    return EmbspaceError(f"The command failed ({kind}: {message}). Add --debug to print the traceback.")


def standard_output_closed() -> EmbspaceError:
    """Standard output is closed."""
    return EmbspaceError("Standard output is closed. Name a file for the table: --out table.csv.")


def unknown_ending(path: object, option: str, endings: Iterable[str]) -> EmbspaceError:
    """The ending of a file names no format."""
    return EmbspaceError(f"The ending of {option} {path} names no format. Use one of {', '.join(endings)}.")


def no_picture(path: object, reason: object) -> EmbspaceError:
    """A figure cannot be written as a picture."""
    return EmbspaceError(
        f"{path} could not be drawn ({reason}). A PNG needs kaleido (pip install 'embspace-lens[plots]') and Chrome. "
        "Or name a file that ends in .html."
    )


def no_device(device: object, reason: object) -> EmbspaceError:
    """A device does not exist on this machine."""
    return EmbspaceError(f"device={device!r} cannot be used ({reason}). Use 'cpu', or 'cuda' on a machine with a GPU.")


def unreadable_vectors(path: object, reason: object) -> EmbspaceError:
    """A file of directions is not a safetensors file, or is damaged."""
    return EmbspaceError(f"{path} cannot be read as safetensors ({reason}).")


def tensor_is_no_direction(name: str, shape: tuple[int, ...], d_model: int) -> EmbspaceError:
    """A tensor of a file of directions has another shape than the model's residual vectors."""
    return EmbspaceError(
        f"The tensor {name!r} has shape {shape}. Directions are [n, {d_model}] or [{d_model}]. Select tensors: --tensor NAME."
    )


def no_such_tensor(path: object, name: str, names: Iterable[str]) -> EmbspaceError:
    """A file of directions has no tensor with the name."""
    return EmbspaceError(f"{path} holds no tensor {name!r}. It holds {_listed(names)}.")


def contradictory_format(format: str, path: object, ending: str) -> EmbspaceError:
    """The format and the ending of the file differ."""
    return EmbspaceError(
        f"--format {format} and --out {path} contradict each other. Leave --format out, or name a file that ends in .{ending}."
    )


def parquet_needs_file() -> EmbspaceError:
    """Parquet was requested without an output file."""
    return EmbspaceError("--format parquet writes binary data. Name a file for it: --out table.parquet.")


def no_pairs_to_exclude(weights: Sequence[str]) -> EmbspaceError:
    """Equal pairs were to be left out of a table of single tokens."""
    return EmbspaceError(
        f"--exclude-same leaves out pairs of tokens, and {', '.join(weights)} has none. Use it with --weight W_OV or W_QK."
    )


def circuits_and_subheads() -> EmbspaceError:
    """Weights with token pairs and weights with tokens were requested in one table."""
    return EmbspaceError(
        "W_OV and W_QK are listed as token pairs; W_Q, W_K, W_V and W_O as tokens. Name weights of one kind at a time."
    )


def no_demo_models() -> EmbspaceError:
    """The installation contains no demo models."""
    return EmbspaceError("No demo model is installed. Name a folder or a model of the hub: --model gpt2.")


def graft_needed(counts: Sequence[int]) -> EmbspaceError:
    """The donors have different numbers of tuned layers."""
    return EmbspaceError(
        f"The classifiers have different numbers of tuned layers: {_listed(counts)}. Choose one: --graft N."
    )


def base_needed(after: str) -> EmbspaceError:
    """The model before tuning is not known."""
    return EmbspaceError(
        f"The model from which {after} was tuned is not known. Name it: embspace-lens difference {after} BEFORE."
    )


def word_lists_needed() -> EmbspaceError:
    """Displacement was requested without its two lists of words."""
    return EmbspaceError("--table displacement needs two lists of words: --positive FILE --negative FILE.")


def one_weight_needed() -> EmbspaceError:
    """Singular directions were requested for several weights."""
    return EmbspaceError("--table singular reads one weight. Give --weight once.")


def unreadable_words(option: str, path: object, reason: OSError) -> EmbspaceError:
    """A list of words cannot be read."""
    return EmbspaceError(f"{option} {path} cannot be read: {reason.strerror or reason}.")


def mixed_word_options() -> EmbspaceError:
    """Some `--word` options have tags and others have none."""
    return EmbspaceError("--word is given both with tags and without. Give WORD each time, or WORD=TAG,TAG each time.")


def texts_or_demo() -> EmbspaceError:
    """A site needs texts from exactly one source."""
    return EmbspaceError("Give --texts PATH, or --demo for texts sampled from the demo model, but not both.")


def demo_has_factors() -> EmbspaceError:
    """A dictionary was given in addition to the demo's dictionary."""
    return EmbspaceError(
        "--demo uses the demo model's dictionary. Leave --factors out, or give --texts instead of --demo."
    )


# -- the papers' experiments


def missing_data(need: str, description: str, folder: object) -> EmbspaceError:
    """An experiment needs a file that the data folder lacks."""
    where = "There is no data folder" if folder is None else f"{folder} has no file for {need!r}"
    return EmbspaceError(f"{where}. The experiment needs {description}. Name the folder that holds it: --data FOLDER.")


def no_figure(experiment: str) -> EmbspaceError:
    """A plot was requested of an experiment without a figure."""
    return EmbspaceError(f"{experiment} has no figure. Leave --plot out.")


def one_experiment_needed() -> EmbspaceError:
    """A plot was requested of several experiments."""
    return EmbspaceError("--plot draws the figure of one experiment. Name one experiment.")


def no_experiment_named(paths: Sequence[object]) -> EmbspaceError:
    """A document to check names no experiment."""
    return EmbspaceError(
        f"{', '.join(map(str, paths))} names no experiment in backticks. Name experiments: paper NAME --check FILE."
    )


def other_model_needed(experiment: str, model: str, what: str) -> EmbspaceError:
    """An experiment cannot run on this model."""
    return EmbspaceError(f"{experiment} cannot run on {model}: it needs {what}. Give it with --model.")


def feature_shape(name: str, part: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """A part of a dictionary of features has a shape that disagrees with the others."""
    return EmbspaceError(f"The {part} of {name} has the shape {list(shape)}, but {expected} is needed.")


def bad_feature_labels(name: str, n_labels: int, n_features: int, repeated: str | None) -> EmbspaceError:
    """The labels of a dictionary are not one per feature, or two are equal."""
    if n_labels != n_features:
        return EmbspaceError(
            f"{n_labels} labels were given for the {n_features:,} features of {name}: one each is needed."
        )
    return EmbspaceError(
        f"Two features of {name} have the label {repeated!r}: labels must differ. Add their indices to them."
    )


def no_such_feature(name: str, feature: str, close: list[str]) -> EmbspaceError:
    """No feature has this label."""
    guess = f" Did you mean {close[0]!r}?" if close else " Pass its index, or one of the labels of the dictionary."
    return EmbspaceError(f"{name} has no feature with the label {feature!r}.{guess}")


def not_a_feature(feature: object) -> EmbspaceError:
    """A value is neither the index nor the label of a feature."""
    return EmbspaceError(f"{feature!r} is not a feature: pass its index or its label.")


def no_encoder(name: str) -> EmbspaceError:
    """Codes are needed from a dictionary that cannot compute them."""
    return EmbspaceError(
        f"{name} has no encoder with a non-linearity, so that its codes cannot be computed. Load the whole dictionary, or "
        "pass encoder= and activation= to Features."
    )


def repeated_dictionary(name: str) -> EmbspaceError:
    """Two dictionaries have the same name."""
    return EmbspaceError(
        f"Two dictionaries have the name {name!r}, so that the rows of a table would not say which of them is meant. Pass name= to Features."
    )


def no_feature_hook(name: str) -> EmbspaceError:
    """A forward pass needs the hook point of a dictionary, which is unknown."""
    return EmbspaceError(f"The hook point that {name} reads is unknown. Pass hook= to Features.")


def gain_folded_away(name: str, hook: str, model: str, norm: str) -> EmbspaceError:
    """A dictionary was trained behind a norm's gain, which the model has no more."""
    return EmbspaceError(
        f"{name} was trained on {hook} of the model as stored, behind the gain of {norm}, which was folded into the weights of "
        f"{model}: the gain is needed. Load the model without weight processing."
    )


def no_such_hook_block(name: str, hook: str, model: str, n_layers: int) -> EmbspaceError:
    """A dictionary was trained on a block that the model does not have."""
    return EmbspaceError(f"{name} was trained on {hook}, but {model} has {n_layers} layers (0 to {n_layers - 1}).")


def reads_features(name: str) -> EmbspaceError:
    """A lens that reads features is given to a function that needs tokens."""
    return EmbspaceError(
        f"This lens of {name} reads features, and the function needs tokens. Pass the lens from which with_features() made it."
    )


def no_dictionary_given() -> EmbspaceError:
    """with_features() is called without a dictionary."""
    return EmbspaceError("with_features() needs source=, target=, or both: dictionaries of features.")


def not_a_dictionary(value: object) -> EmbspaceError:
    """A value is not a dictionary of features."""
    return EmbspaceError(
        f"{type(value).__name__} is not a dictionary of features. Pass Features(decoder, encoder), or Features.load(path)."
    )


def same_features(name: str) -> EmbspaceError:
    """Pairs of features are to be excluded by their texts."""
    return EmbspaceError(
        f"exclude_same compares the texts of tokens, and this lens of {name} reads features. Filter the table by its labels."
    )


def plane_of_features() -> EmbspaceError:
    """A plane of tokens is to be drawn from a table of features."""
    return EmbspaceError("plot_plane() draws tokens, and this table holds features. Use table.embspace.plot().")


def feature_hook_unknown(name: str) -> EmbspaceError:
    """Codes are to be measured in a forward pass, but the dictionary's hook point is unknown."""
    return EmbspaceError(f"The hook point of {name} is unknown. Give it: Features(…, hook='blocks.3.hook_resid_post').")


def no_features_in_table(columns: Iterable[object]) -> EmbspaceError:
    """A dictionary is given with a table that names no features."""
    return EmbspaceError(
        f"vectors= is a dictionary of features, but the table has no row with a feature_index (its columns: "
        f"{', '.join(map(str, columns))}). Pass rows of a table of features."
    )


def no_features(path: object) -> EmbspaceError:
    """A path at which there is no dictionary of features."""
    return EmbspaceError(
        f"{path} does not exist. Give the folder or the file of a dictionary of features; download it first."
    )


def unknown_features_layout(path: object, files: Sequence[str]) -> EmbspaceError:
    """A file or folder is none of the known layouts of dictionaries."""
    content = f" It contains {_listed(files[:5])}." if files else ""
    return EmbspaceError(
        f"{path} has no known layout of a dictionary of features.{content} Known are sae_weights.safetensors with cfg.json "
        "(SAELens), sae.safetensors with cfg.json (sparsify), params.npz and params.safetensors (Gemma Scope), "
        "layer_0.safetensors, and W_enc_0.safetensors with W_dec_0.safetensors (circuit-tracer)."
    )


def features_not_safe(path: object) -> EmbspaceError:
    """A dictionary of features is stored as Python objects, which are not loaded."""
    return EmbspaceError(
        f"{path} contains Python objects, which may run code when they are read. Load it where you trust it, and pass its "
        "matrices to Features, whose save(folder) writes safetensors."
    )


def several_layers_not_read(folder: object) -> EmbspaceError:
    """A dictionary of Gemma Scope 2 spans several layers."""
    return EmbspaceError(
        f"{folder} contains a cross-layer transcoder or a crosscoder of Gemma Scope 2, which is not read. Give the folder of a "
        "single layer."
    )


def missing_features_file(folder: object, file: str) -> EmbspaceError:
    """One of the files of a dictionary of features is missing."""
    return EmbspaceError(f"{folder} has no {file}, which its dictionary of features needs. Download or copy it too.")


def missing_feature_tensor(path: object, tensor: str, tensors: Sequence[str]) -> EmbspaceError:
    """A file of a dictionary of features lacks a tensor."""
    return EmbspaceError(
        f"{path} has no tensor {tensor}: it contains {_listed(tensors) or 'none'}. Is it of another layout?"
    )


def unexpected_feature_tensors(path: object, tensors: Sequence[str], known: Sequence[str]) -> EmbspaceError:
    """A file of a dictionary of features has tensors of unknown meaning."""
    known = sorted({name for name in known if name})
    return EmbspaceError(
        f"{path} contains {_listed(tensors[:5])}, which its layout does not have. The dictionary would be read incorrectly; "
        f"known are {_listed(known)}."
    )


def feature_dtype(path: object, tensor: str, dtype: object) -> EmbspaceError:
    """A tensor of a dictionary of features has an unusable type."""
    return EmbspaceError(f"{tensor} of {path} is stored as {dtype}. Store it as float16, bfloat16, float32 or float64.")


def stored_shape(path: object, tensor: str, shape: tuple[int, ...], expected: str) -> EmbspaceError:
    """The shape of a stored tensor disagrees with the others."""
    return EmbspaceError(
        f"{tensor} of {path} has the shape {list(shape)}, but {expected} is needed beside the other tensors."
    )


def feature_config(path: object, field: str, value: object, expected: str) -> EmbspaceError:
    """A field of a dictionary's configuration has a wrong value, or disagrees with the tensors."""
    return EmbspaceError(f"{field} in {path} is {value!r}, but {expected} is needed.")


def not_a_configuration(path: object) -> EmbspaceError:
    """A configuration file contains something other than fields."""
    return EmbspaceError(
        f"{path} is not a configuration: it does not contain fields with values. Download or copy it again."
    )


def dictionary_architecture(path: object, architecture: str, known: Sequence[str]) -> EmbspaceError:
    """A dictionary computes its codes in a way that is not read."""
    return EmbspaceError(
        f"{path} has the architecture {architecture!r}, whose codes are not one function of one vector and an encoder, or are "
        f"unknown. Known are {_listed(known)}, and their transcoders."
    )


def unknown_input_scale() -> EmbspaceError:
    """Codes need the factor of the inputs, which the files do not contain."""
    return EmbspaceError(
        "These codes are of inputs times a constant factor, which the dictionary's files do not contain. "
        "Pass it: Features.load(path, input_scale=…); SAELens lists it as norm_scaling_factor."
    )


def input_scale_not_needed(path: object) -> EmbspaceError:
    """A factor of the inputs was given for a dictionary without one."""
    return EmbspaceError(f"input_scale was given, but the inputs of {path} are not scaled by a constant. Leave it out.")


def transcoder_input_scale(name: str) -> EmbspaceError:
    """A factor of the inputs was given for a transcoder."""
    return EmbspaceError(
        f"input_scale was given, but {name} is a transcoder, whose inputs and outputs have different scales. Leave it out: "
        "its directions are read, but not its codes."
    )


def option_of_layout(option: str, path: object, layouts: str) -> EmbspaceError:
    """An option was given that this layout does not have."""
    return EmbspaceError(f"{option} is an option of {layouts}, but {path} is of another layout. Leave it out.")


def remote_dictionary(path: object, address: object) -> EmbspaceError:
    """A list of transcoders names one that is not on this machine."""
    return EmbspaceError(
        f"{path} lists the transcoder {address!r}, which is not on this machine. Download it and give its path."
    )


def dictionary_layer(path: object, layer: int | None, layers: Sequence[int]) -> EmbspaceError:
    """A folder contains the dictionaries of several layers, or not the one that was requested."""
    given = "No layer was given" if layer is None else f"layer={layer} is not there"
    return EmbspaceError(
        f"{given}: {path} contains the layers {', '.join(map(str, layers)) or 'none'}. Pass one: layer=…."
    )


def written_layer(path: object, value: object, first: int, last: int) -> EmbspaceError:
    """The written layer of a cross-layer transcoder is missing or out of range."""
    given = "No output_layer was given" if value is None else f"output_layer={value!r} is out of range"
    return EmbspaceError(
        f"{given}: layer {first} of {path} writes to the layers {first} to {last}. Pass one of them, or several for their sum: "
        f"output_layer=range({first}, {last + 1})."
    )


def not_labels(path: object) -> EmbspaceError:
    """A file of labels contains something else."""
    return EmbspaceError(f"{path} is not a list of texts, one for each feature.")


def activation_not_saved(name: str, activation: str) -> EmbspaceError:
    """The rule for the codes of a dictionary cannot be written to a file."""
    return EmbspaceError(
        f"{name} cannot be saved: no layout can describe its codes ({activation}). Pass activation=None, or an Activation."
    )


def no_feature_encoder(name: str) -> EmbspaceError:
    """What features read is needed from a dictionary without an encoder."""
    return EmbspaceError(
        f"{name} has no encoder, so what its features read is unknown. Load the whole dictionary, or pass encoder= to Features."
    )


def lens_needed(circuit: str) -> EmbspaceError:
    """A circuit of heads was requested without the model's weights."""
    return EmbspaceError(f"circuit={circuit!r} reads the weights of heads. Pass the model's lens: lens=.")


def direct_has_no_heads() -> EmbspaceError:
    """A layer or head was selected for weights directly through the residual stream."""
    return EmbspaceError(
        "circuit='direct' passes through no head. Leave layer= and head= out, or pass circuit='ov' or circuit='qk'."
    )


def different_dictionary_widths(source: str, d_source: int, target: str, d_target: int) -> EmbspaceError:
    """Two dictionaries have different widths."""
    return EmbspaceError(
        f"The features of {source} have width {d_source}, those of {target} {d_target}. Pass two dictionaries of one model."
    )


def read_before_written(source: str, written: str, target: str, read: str) -> EmbspaceError:
    """A dictionary reads the stream before another one writes to it."""
    return EmbspaceError(
        f"{target} reads at {read}, before {source} writes at {written}: there is no direct weight. Pass as source the "
        "dictionary that writes first."
    )


def reads_a_sublayer(target: str, hook: str) -> EmbspaceError:
    """A dictionary reads the output of a sublayer, and no linear path leads there from the features of another one."""
    return EmbspaceError(
        f"{target} reads {hook}, the output of one sublayer, and not the residual stream, so that this circuit does not "
        "lead to it. Pass a target that reads the stream or, for the output of attention, circuit='ov'."
    )


def layer_needed(name: str) -> EmbspaceError:
    """The layers between two dictionaries cannot be determined."""
    return EmbspaceError(
        f"The place of {name} in the model is unknown, so the layers of the heads must be given. Pass layer=, or hook= to Features."
    )


def no_layers_between(source: str, target: str, circuit: str) -> EmbspaceError:
    """No block's attention lies between two dictionaries."""
    return EmbspaceError(
        f"No attention that is read lies between {source} and {target} for circuit={circuit!r}. Pass dictionaries with "
        "attention between them, or other ones."
    )


def layer_out_of_order(circuit: str, layers: Sequence[int], between: Sequence[int]) -> EmbspaceError:
    """Selected blocks do not lie between two dictionaries."""
    allowed = f"one of {', '.join(map(str, between))}" if between else "another dictionary"
    return EmbspaceError(
        f"circuit={circuit!r} at layer {', '.join(map(str, layers))} needs features that are written before its attention "
        f"and, for 'ov', read after it. Pass {allowed}."
    )


def no_hook_of_features(name: str) -> EmbspaceError:
    """The activations of a dictionary are needed, and its hook point is unknown."""
    return EmbspaceError(
        f"{name} has no hook point, so its activations cannot be measured. Pass hook= to Features, such as "
        "'blocks.3.hook_resid_post'."
    )


def not_pairs_of_features(shape: tuple[int, ...]) -> EmbspaceError:
    """Pairs of features are neither a table nor an array of two columns."""
    return EmbspaceError(
        f"pairs has the shape {list(shape)}: pass a table of virtual_weights, or indices of source and target features, [n, 2]."
    )


def indirect_pairs(circuit: str) -> EmbspaceError:
    """Co-activation at one position was applied to weights that pass through a head."""
    return EmbspaceError(
        f"Pairs of circuit={circuit!r} pass through attention, which connects different positions; era and twera are defined "
        "for circuit='direct' alone. Pass direct pairs."
    )


def pairs_not_measured(n_missing: int, n_pairs: int) -> EmbspaceError:
    """Statistics lack some of the pairs of a table."""
    return EmbspaceError(
        f"The statistics lack {n_missing:,} of the {n_pairs:,} pairs. Pass the same table to coactivation(…, pairs=)."
    )


def not_a_coactivation_checkpoint(path: object, reason: object) -> EmbspaceError:
    """A file that should hold unfinished statistics of co-activation cannot be read."""
    return EmbspaceError(
        f"{path} is not a checkpoint of coactivation, or is damaged: {reason}. Pass another file, or delete this one."
    )


def checkpoint_of_other_coactivation(path: object, options: Sequence[str]) -> EmbspaceError:
    """A checkpoint was made with another model, other dictionaries, pairs or options."""
    return EmbspaceError(
        f"{path} is the checkpoint of another coactivation; these differ: {', '.join(options)}. Pass another file, or "
        "delete this one."
    )


def coactivation_of_other_texts(path: object) -> EmbspaceError:
    """A checkpoint was made from other texts."""
    return EmbspaceError(
        f"{path} is the checkpoint of a coactivation of other texts. Pass another file, or delete this one."
    )


def several_circuits(caller: str, circuits: Sequence[str]) -> EmbspaceError:
    """A graph of the virtual weights of one circuit was given a table of several."""
    return EmbspaceError(f"{caller} draws one circuit, and this table holds {', '.join(circuits)}. Select one of them.")


def features_without_lens() -> EmbspaceError:
    """A site of features needs a model's weights."""
    return EmbspaceError(
        "A site of features reads a model's weights. Pass lens=, or model= with the model on which they were trained."
    )


def feature_texts_without_model() -> EmbspaceError:
    """The site of features needs a model to read texts."""
    return EmbspaceError("texts needs a model that reads them. Pass model=.")


def no_dictionaries() -> EmbspaceError:
    """An empty list of dictionaries was given."""
    return EmbspaceError("The list of dictionaries is empty. Pass Features, or several.")


def features_are_not_factors(name: str) -> EmbspaceError:
    """A site of factors was asked for features."""
    return EmbspaceError(
        f"{name} is a dictionary of features, and explore() takes Factors. Pass it to explore_features()."
    )


def features_or_demo() -> EmbspaceError:
    """A site of features needs dictionaries from exactly one source."""
    return EmbspaceError("Give --features PATH, or --demo for the demo model's dictionaries, but not both.")
