"""Stitched models: the first blocks of one model, a translation, and the last blocks and classification head of another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from .. import errors
from ..errors import EmbspaceError
from ..files import expand, make_folder, read_json, whole, write_json
from ..forward.batches import TokenBatch, token_batches
from ..forward.pooling import PooledHead, pool
from ..forward.runs import collect_activations, resume
from ..lens import EmbeddingLens
from ..weights.configuration import device_of, n_layers
from ..weights.hook_points import state_hook
from .common_tokens import check_lens
from .stitch_inputs import check_depth, check_head, clamp_tokens, longest_row
from .translation import Translation

Hooks = Sequence[tuple[str, Callable[..., Any]]]
TRANSLATED, POOLED = "translation.hook_out", "head.hook_pooled"


class StitchedModel(nn.Module):
    """The first blocks of a recipient, a translation, the last blocks of a donor, and its classification head.

    The names of hook points are those of TransformerLens, with the half as prefix: `recipient.blocks.1.attn.hook_z`,
    `donor.blocks.3.hook_resid_post`. There are two more: `translation.hook_out` and `head.hook_pooled`. `stitch` makes a
    stitched model.

    Attributes:
        recipient: The model whose blocks 0 … keep − 1 run.
        donor: The model whose last `graft` blocks run.
        keep: How many blocks of the recipient run; 0 for its embeddings alone.
        graft: How many blocks of the donor run; 0 applies the head to the translated states.
        start: The first block of the donor that runs.
        translation: From the recipient's residual stream to the donor's.
        head: Scores the classes.
    """

    def __init__(
        self, recipient: Any, donor: Any, keep: int, graft: int, translation: Translation, head: PooledHead
    ) -> None:
        super().__init__()
        self.recipient, self.donor, self.head = recipient, donor, head
        self.start = n_layers(donor) - graft
        self.keep, self.graft, self.translation = keep, graft, translation

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    def batches(
        self, texts: Iterable[str], *, batch_tokens: int = 8192, max_tokens: int | None = None
    ) -> Iterator[TokenBatch]:
        """Tokenize texts into batches of the recipient's tokens; rows fit the context windows of both models."""
        longest = longest_row([self.recipient, self.donor], max_tokens)
        return token_batches(self.recipient, texts, batch_tokens=batch_tokens, max_tokens=longest)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "batch n_classes"]:
        """Score the classes for a batch of `batches(texts)`; padding has no effect."""
        return self._run(batch, (), ())[0]

    def run_with_hooks(self, batch: TokenBatch, fwd_hooks: Hooks = ()) -> Float[Tensor, "batch n_classes"]:
        """Score the classes with interventions: pairs of a hook point's name and a function of (value, hook)."""
        return self._run(batch, fwd_hooks, ())[0]

    def run_with_cache(
        self, batch: TokenBatch, names: Sequence[str] | None = None, fwd_hooks: Hooks = ()
    ) -> tuple[Float[Tensor, "batch n_classes"], dict[str, Tensor]]:
        """Score the classes, and return the activations at the named hook points.

        By default these are the residual stream after every block that runs, the translated states and the pooled states.
        """
        if names is None:
            donor_blocks = range(self.start, self.start + self.graft)
            names = [f"recipient.blocks.{i}.hook_resid_post" for i in range(self.keep)]
            names += [TRANSLATED, *(f"donor.blocks.{i}.hook_resid_post" for i in donor_blocks), POOLED]
        return self._run(batch, fwd_hooks, names)

    @torch.no_grad()
    def logits(
        self, texts: Sequence[str], *, batch_tokens: int = 8192, max_tokens: int | None = None
    ) -> Float[Tensor, "n_texts n_classes"]:
        """Score the classes for every text; NaN for a text without tokens."""
        scores = torch.full((len(texts), len(self.labels)), torch.nan)
        with tqdm(total=len(texts), desc="classify", unit="text", disable=None, leave=False) as bar:
            for batch in self.batches(texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
                scores[batch.example] = self(batch).float().cpu()
                bar.update(len(batch))
        return scores

    def _run(
        self, batch: TokenBatch, hooks: Hooks, names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch n_classes"], dict[str, Tensor]]:
        for name in [*names, *(name for name, _ in hooks)]:
            error = self._hook_error(name)
            if error is not None:
                raise error
        cache: dict[str, Tensor] = {}

        def pass_through(name: str, value: Tensor) -> Tensor:
            """Apply the hooks of one of the two hook points between the models."""
            for hook_name, function in hooks:
                if hook_name == name:
                    changed = function(value, hook=None)
                    value = value if changed is None else changed
            cache[name] = value
            return value

        state = self._run_recipient(batch, hooks, names, cache)
        state = pass_through(TRANSLATED, self.translation.state(state.to(device_of(self.donor))))
        if self.graft:
            state = self._run_donor(batch, state, hooks, names, cache)
        pooled = pass_through(POOLED, pool(state, batch.mask.to(state.device)))
        return self.head.linear(pooled.to(self.head.linear.weight)), {name: cache[name] for name in names}

    def _run_recipient(
        self, batch: TokenBatch, hooks: Hooks, names: Sequence[str], cache: dict[str, Tensor]
    ) -> Float[Tensor, "batch pos d_recipient"]:
        """Run the recipient up to the translation; activations at its named hook points are added to the cache."""
        end = state_hook(self.recipient, self.keep - 1)
        own_names = _names_of("recipient.", names)
        own_hooks = _hooks_of("recipient.", hooks)
        activations = collect_activations(self.recipient, batch, [*own_names, end], hooks=own_hooks)
        cache |= {f"recipient.{name}": activations[name] for name in own_names}
        return activations[end]

    def _run_donor(
        self,
        batch: TokenBatch,
        state: Float[Tensor, "batch pos d_donor"],
        hooks: Hooks,
        names: Sequence[str],
        cache: dict[str, Tensor],
    ) -> Float[Tensor, "batch pos d_donor"]:
        """Run the donor's last blocks on translated states; activations at its named hook points are added to the cache."""
        own_names = _names_of("donor.", names)
        own_hooks = _hooks_of("donor.", hooks)
        clamped = clamp_tokens(batch, self.donor)
        state, activations = resume(self.donor, clamped, state, self.start, names=own_names, hooks=own_hooks)
        cache |= {f"donor.{name}": activations[name] for name in own_names}
        return state

    def _hook_error(self, name: str) -> EmbspaceError | None:
        """The reason why a hook point cannot fire; None if its half and its block run."""
        half, _, rest = name.partition(".")
        if name in (TRANSLATED, POOLED):
            return None
        if half not in ("recipient", "donor"):
            return errors.no_stitched_hook(name, (TRANSLATED, POOLED))
        if rest.startswith("blocks."):
            block = rest.split(".")[1]
            blocks = range(self.keep) if half == "recipient" else range(self.start, self.start + self.graft)
            if not block.isdigit() or int(block) not in blocks:
                return errors.block_not_run(name, half, blocks)
        return None

    # -- on disk

    def save(self, folder: str | Path) -> Path:
        """Write the translation and the head (`cfg.json`, `stitched.safetensors`), but neither of the two models.

        Raises:
            EmbspaceError: If the folder cannot be written.
        """
        folder = make_folder(folder)
        tensors = {f"translation.{name}": value for name, value in self.translation.tensors().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        with whole(folder / "stitched.safetensors") as partial:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
        cfg = {"keep": self.keep, "graft": self.graft, "labels": list(self.labels), **self.translation.facts()}
        write_json(folder / "cfg.json", cfg)
        return folder

    @classmethod
    def load(cls, folder: str | Path, recipient: EmbeddingLens, donor: EmbeddingLens) -> "StitchedModel":
        """Read what `save` wrote.

        Args:
            folder: The folder given to `save`.
            recipient: The recipient's lens, as given to `stitch`.
            donor: The donor's lens.

        Raises:
            EmbspaceError: If the folder is damaged, or was written for other models.
        """
        folder = expand(folder)
        cfg = read_json(folder / "cfg.json")
        try:
            tensors = load_file(folder / "stitched.safetensors")
            translation = Translation.of(cfg, _tensors_of("translation.", tensors))
            head = PooledHead(tensors["head.linear.weight"].shape[1], cfg["labels"])
            head.load_state_dict(_tensors_of("head.", tensors))
            keep, graft = cfg["keep"], cfg["graft"]
        except (OSError, KeyError, RuntimeError, SafetensorError) as reason:
            raise errors.unreadable_stitched_model(folder, reason) from reason
        for lens, name in ((check_lens(recipient), translation.source), (check_lens(donor), translation.target)):
            if lens.name != name:
                raise errors.stitched_with_other(folder, name, lens.name)
        return stitch(recipient, donor, keep=keep, graft=graft, translation=translation, head=head)


def stitch(
    recipient: EmbeddingLens, donor: EmbeddingLens, *, keep: int, graft: int, translation: Translation, head: PooledHead
) -> StitchedModel:
    r"""Apply a fine-tuned model's classifier to a model that was only pretrained: no training, and no data.

    .. math:: \mathrm{logits} = h\big(\mathrm{donor}_{L-g \ldots L-1}\big(T(\mathrm{recipient}_{0 \ldots k-1}(\mathrm{tokens}))\big)\big)

    Args:
        recipient: The pretrained model's lens.
        donor: The fine-tuned model's lens.
        keep: How many of the recipient's first blocks run.
        graft: How many of the donor's last blocks run: those that were fine-tuned.
        translation: `translate(recipient, donor)`.
        head: The donor's head on the mean of its hidden states. The donor's final norm is left out.

    Returns:
        A module that classifies batches of texts, with hooks in both models.

    Raises:
        EmbspaceError: If a model has fewer blocks, or the translation or the head has another width.

    Example:
        >>> head = PooledHead(tuned.weights.d_model, ["negative", "positive"])
        >>> stitched = stitch(lens, tuned, keep=1, graft=1, translation=translate(lens, tuned), head=head)
        >>> stitched.logits([]).shape
        torch.Size([0, 2])

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    recipient, donor = check_lens(recipient), check_lens(donor)
    keep, graft = check_depth("keep", keep, recipient), check_depth("graft", graft, donor)
    head = check_head(head, donor)
    for lens, width, end in ((recipient, translation.d_source, "source"), (donor, translation.d_target, "target")):
        if width != lens.weights.d_model:
            make = f"translate({recipient.name}, {donor.name})"
            raise errors.bad_translation_width(end, width, lens.name, lens.weights.d_model, make)
    return StitchedModel(recipient.model, donor.model, keep, graft, translation, head).eval()


def _names_of(prefix: str, names: Sequence[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _hooks_of(prefix: str, hooks: Hooks) -> Hooks:
    return [(name.removeprefix(prefix), function) for name, function in hooks if name.startswith(prefix)]


def _tensors_of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
