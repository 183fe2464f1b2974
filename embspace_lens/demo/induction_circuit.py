"""A small model with an induction circuit whose weights are set by hand, so that the answer of an analysis is known."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..tables.checks import check_integer
from ..weights.booting import boot_attention_only

LETTERS = "|abcdefghijklmnopqrstuvwxyz"
"""The vocabulary of the induction model; every text begins with `|`."""

N_CTX, D_MODEL = 41, 128
SHARPNESS = 64.0  # scale of the planted queries; the softmax then selects one key
NOISE = 0.1  # scale of the noise that is added to every weight


def induction_model(offset: int = 1) -> Any:
    r"""Make an attention-only model with an induction circuit: in `… A B … A` it predicts `B`.

    The model has two layers of three heads, no MLPs and no norms. Its tokens are 26 letters and `|`, which begins every text. The
    residual stream has four orthogonal subspaces, rotated at random: the current letter c, the position p, the stored letter
    s, and the predicted letter f, which the unembedding reads. Four heads are set by hand:

    | head | query · key | value → output | what it does |
    |---|---|---|---|
    | L0H1 | p(i) · p(i − offset) | c → s | attends to the previous token and stores its letter |
    | L1H0 | 0 | c → f | attends uniformly and copies |
    | L1H1 | c · c | random | attends to the same letter and moves noise |
    | L1H2 | c · s | c → f | induction: attends to where its letter is stored, and copies the letter there |

    The two other heads are random, and every weight has a little noise.

    Args:
        offset: How many positions back L0H1 attends. With 2, the model predicts the letter after the next.

    Returns:
        A TransformerBridge with its tokenizer, which splits texts into letters.

    Raises:
        EmbspaceError: If the offset is not an integer from 1 to 40.

    Example:
        >>> model = induction_model()
        >>> model.tokenizer.decode(model("wxyzabcdwxyz")[0, -1].argmax())
        'a'

    References:
        Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Induction heads".
        Olsson et al. (2022), In-context Learning and Induction Heads, §1. https://arxiv.org/abs/2209.11895
    """
    offset = check_integer("offset", offset, minimum=1, maximum=N_CTX - 1)
    sizes = dict(d_model=D_MODEL, d_head=N_CTX, n_layers=2, n_heads=3, n_ctx=N_CTX, d_vocab=len(LETTERS))
    model, weights = boot_attention_only("induction", _letter_tokenizer(), **sizes)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Float[Tensor, "..."]:
        return torch.randn(shape, generator=generator, dtype=torch.float32) / D_MODEL**0.5

    n = len(LETTERS)
    rotation = torch.linalg.qr(noise(D_MODEL, D_MODEL)).Q
    current, position, stored, following, _ = rotation.split([n, N_CTX, n, n, D_MODEL - N_CTX - 3 * n])

    def plant(layer: int, head: int, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Set the rows of a head: what its dimensions read as query, key and value, and where they are written."""
        rows_of_head = slice(head * N_CTX, (head + 1) * N_CTX)
        for name, rows in {"q": query, "k": key, "v": value, "o": output}.items():
            rows = torch.cat([rows, rows.new_zeros(N_CTX - len(rows), D_MODEL)])
            weight = weights[f"layers.{layer}.attn.{name}.weight"]
            (weight.T if name == "o" else weight)[rows_of_head] = rows

    with torch.no_grad():
        for parameter in weights.values():
            parameter.copy_(noise(*parameter.shape) if parameter.ndim > 1 else torch.zeros_like(parameter))
        for name, rows in {"tok_embed": current, "pos": position, "head": following}.items():
            weights[f"{name}.weight"].copy_(rows)
        # The query of position i + offset matches the key of position i.
        shifted = torch.cat([0 * position[:offset], position[:-offset]])
        nothing = torch.zeros(0, D_MODEL)
        plant(0, 1, SHARPNESS * position, shifted, current, stored)
        plant(1, 0, nothing, nothing, current, 3 * following)
        plant(1, 1, SHARPNESS * current, current, noise(n, D_MODEL), noise(n, D_MODEL))
        plant(1, 2, SHARPNESS * current, stored, current, 10 * following)
        for parameter in weights.values():
            if parameter.ndim > 1:
                parameter.add_(NOISE * noise(*parameter.shape))
    return model


def _letter_tokenizer() -> Any:
    """A tokenizer with one token per letter; `|` begins texts and stands for unknown characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start = LETTERS[0]
    letters = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token=start))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.post_processor = processors.TemplateProcessing(f"{start} $A", special_tokens=[(start, 0)])
    letters.decoder = decoders.Fuse()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), start)
    # TransformerLens loads a tokenizer again, by its name, unless the tokenizer states that it adds the first token.
    return PreTrainedTokenizerFast(tokenizer_object=letters, name_or_path="letters", add_bos_token=True, **special)
