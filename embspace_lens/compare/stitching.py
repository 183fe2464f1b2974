"""The first blocks of one model, a translation, and the last blocks and the head of another, as one model."""

from collections.abc import Callable, Iterable, Sequence
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
from ..files import read_json, whole, write_json
from ..forward.batches import TokenBatch, token_batches
from ..forward.pooling import PooledHead, pool
from ..forward.runs import collect_activations, resume
from ..lens import EmbeddingLens
from ..weights.configuration import device_of
from ..weights.hook_points import state_hook
from .common_tokens import require_lenses
from .translation import Translation

Hooks = Sequence[tuple[str, Callable[..., Any]]]
TRANSLATED, POOLED = "translation.hook_out", "head.hook_pooled"


class StitchedModel(nn.Module):
    """The first blocks of a recipient, a translation, the last blocks of a donor, and its classifier's head.

    Hook points are TransformerLens's on both halves, behind the half's name: `recipient.blocks.1.attn.hook_z`,
    `donor.blocks.3.hook_resid_post`; besides them `translation.hook_out` and `head.hook_pooled`. Made by `stitch`.

    Attributes:
        recipient: The model whose blocks 0 … keep − 1 run.
        donor: The model whose last `graft` blocks run.
        keep: How many blocks of the recipient; 0 for its embeddings alone.
        graft: How many blocks of the donor; 0 puts the head on what was translated.
        start: The first of them.
        translation: From the recipient's residual stream to the donor's.
        head: Scores the classes.
    """

    def __init__(
        self, recipient: Any, donor: Any, keep: int, graft: int, translation: Translation, head: PooledHead
    ) -> None:
        super().__init__()
        self.recipient, self.donor, self.head = recipient, donor, head
        self.start = len(donor.blocks) - graft
        self._last_token = int(donor.cfg.d_vocab) - 1
        self.keep, self.graft, self.translation = keep, graft, translation

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    def batches(self, texts: Iterable[str], *, batch_tokens: int = 8192, max_tokens: int | None = None) -> Any:
        """Texts as batches of the recipient's tokens, no row longer than either model's context."""
        contexts = [getattr(model.cfg, "n_ctx", None) for model in (self.recipient, self.donor)]
        longest = min([n for n in (*contexts, max_tokens) if n], default=None)
        return token_batches(self.recipient, texts, batch_tokens=batch_tokens, max_tokens=longest)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "batch n_classes"]:
        """Scores of the classes for a batch of `batches(texts)`; padding counts for nothing."""
        return self.run_with_hooks(batch)

    def run_with_hooks(self, batch: TokenBatch, fwd_hooks: Hooks = ()) -> Float[Tensor, "batch n_classes"]:
        """The same, with interventions: (name, function of (value, hook)), the names as this class says."""
        return self._run(batch, fwd_hooks, [])[0]

    def run_with_cache(
        self, batch: TokenBatch, names: Sequence[str] | None = None, fwd_hooks: Hooks = ()
    ) -> tuple[Float[Tensor, "batch n_classes"], dict[str, Tensor]]:
        """The same, with what passed the named hook points; by default the residual stream after every block that runs."""
        if names is None:
            names = [f"recipient.blocks.{i}.hook_resid_post" for i in range(self.keep)]
            names += [
                TRANSLATED,
                *(f"donor.blocks.{i}.hook_resid_post" for i in range(self.start, self.start + self.graft)),
            ]
            names += [POOLED]
        return self._run(batch, fwd_hooks, names)

    @torch.no_grad()
    def logits(self, texts: Sequence[str], *, batch_tokens: int = 8192, max_tokens: int | None = None) -> Tensor:
        """Scores of the classes for every text, `[n_texts, n_classes]`; NaN for a text without a token."""
        scores = torch.full((len(texts), len(self.labels)), torch.nan)
        with tqdm(total=len(texts), desc="classify", unit="text", disable=None, leave=False) as bar:
            for batch in self.batches(texts, batch_tokens=batch_tokens, max_tokens=max_tokens):
                scores[batch.example] = self(batch).float().cpu()
                bar.update(len(batch))
        return scores

    def _run(self, batch: TokenBatch, hooks: Hooks, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        for name in [*names, *(name for name, _ in hooks)]:
            self._require(name)
        cache: dict[str, Tensor] = {}

        def pass_through(name: str, value: Tensor) -> Tensor:
            for wanted, function in hooks:
                if wanted == name:
                    changed = function(value, hook=None)
                    value = value if changed is None else changed
            if name in names:
                cache[name] = value
            return value

        entrance = state_hook(self.recipient, self.keep - 1)
        mine = _without("recipient.", names)
        found = collect_activations(self.recipient, batch, [*mine, entrance], hooks=_hooks_of("recipient.", hooks))
        cache |= {f"recipient.{name}": found[name] for name in mine}
        state = pass_through(TRANSLATED, self.translation.state(found[entrance].to(device_of(self.donor))))
        if self.graft:
            mine = _without("donor.", names)
            harmless = TokenBatch(
                batch.example, batch.start, batch.tokens.clamp(max=self._last_token), batch.mask, batch.length
            )
            state, found = resume(self.donor, harmless, state, self.start, names=mine, hooks=_hooks_of("donor.", hooks))
            cache |= {f"donor.{name}": found[name] for name in mine}
        pooled = pass_through(POOLED, pool(state, batch.mask.to(state.device)))
        return self.head.linear(pooled.to(self.head.linear.weight)), {name: cache[name] for name in names}

    def _require(self, name: str) -> None:
        """Refuse hook points that no part of the model runs through."""
        half, _, rest = name.partition(".")
        if name in (TRANSLATED, POOLED):
            return
        if half not in ("recipient", "donor"):
            raise EmbspaceError(
                f"{name!r} is no hook point of a stitched model: its names begin with 'recipient.' or 'donor.', or are {TRANSLATED!r} or {POOLED!r}."
            )
        if rest.startswith("blocks."):
            block = rest.split(".")[1]
            runs = range(self.keep) if half == "recipient" else range(self.start, self.start + self.graft)
            if not block.isdigit() or int(block) not in runs:
                blocks = ", ".join(map(str, runs)) or "none"
                raise EmbspaceError(f"{name!r} does not run: of the {half}, blocks {blocks} do.")

    # -- on disk

    def save(self, folder: str | Path) -> Path:
        """Write the translation and the head (`cfg.json`, `stitched.safetensors`); the two models stay where they are.

        Raises:
            EmbspaceError: If the folder cannot be written.
        """
        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise EmbspaceError(f"{folder} cannot be made: {reason.strerror or reason}.") from reason
        tensors = {f"translation.{name}": value for name, value in self.translation.tensors().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        with whole(folder / "stitched.safetensors") as partial:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
        cfg = {"keep": self.keep, "graft": self.graft, "labels": list(self.labels), **self.translation.facts()}
        write_json(folder / "cfg.json", cfg)
        return folder

    @classmethod
    def load(cls, folder: str | Path, recipient: Any, donor: Any) -> "StitchedModel":
        """Read what `save` wrote.

        Args:
            folder: Where it lies.
            recipient: The recipient's lens, as it was given to `stitch`.
            donor: The donor's lens.

        Raises:
            EmbspaceError: If the folder is damaged, or the models are others.
        """
        folder = Path(folder).expanduser()
        cfg = read_json(folder / "cfg.json")
        try:
            tensors = load_file(folder / "stitched.safetensors")
            translation = Translation.of(cfg, {k[12:]: v for k, v in tensors.items() if k.startswith("translation.")})
            head = PooledHead(tensors["head.linear.weight"].shape[1], cfg["labels"])
            head.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("head.")})
            keep, graft = cfg["keep"], cfg["graft"]
        except (OSError, KeyError, RuntimeError, SafetensorError) as reason:
            raise EmbspaceError(f"{folder} holds no stitched model that can be read: {reason}") from reason
        for lens, name in ((recipient, translation.source), (donor, translation.target)):
            if isinstance(lens, EmbeddingLens) and lens.name != name:
                raise EmbspaceError(f"{folder} was stitched with {name}, not with {lens.name}.")
        return stitch(recipient, donor, keep=keep, graft=graft, translation=translation, head=head)


def stitch(
    recipient: EmbeddingLens, donor: EmbeddingLens, *, keep: int, graft: int, translation: Translation, head: PooledHead
) -> StitchedModel:
    r"""Carry a classifier to a model that never was tuned: no training, and no data on the recipient.

    .. math:: \mathrm{logits} = h\big(\mathrm{donor}_{L-g \ldots L-1}\big(T(\mathrm{recipient}_{0 \ldots k-1}(\mathrm{tokens}))\big)\big)

    Args:
        recipient: The pretrained model's lens.
        donor: The tuned model's lens.
        keep: How many of the recipient's first blocks run.
        graft: How many of the donor's last blocks run; those that were tuned.
        translation: `translate(recipient, donor)`.
        head: The donor's head over the mean of its hidden states; its final norm is left out.

    Returns:
        A module that classifies batches of texts, with hooks on both halves.

    Raises:
        EmbspaceError: If there are not so many blocks, or the translation or the head is of another width.

    Example:
        >>> model = stitch(lens, tuned, keep=1, graft=1, translation=translate(lens, tuned), head=head)
        >>> model.logits([]).shape[1] == len(head.labels)
        True

    References:
        Dar et al. (2023), Analyzing Transformers in Embedding Space, §5. https://arxiv.org/abs/2209.02535
    """
    check_stitch(recipient, donor, keep, graft, head)
    for lens, width, side in ((recipient, translation.d_source, "from"), (donor, translation.d_target, "to")):
        if width != lens.weights.d_model:
            raise EmbspaceError(
                f"The translation goes {side} width {width}, but {lens.name} has d_model={lens.weights.d_model}. "
                f"Make it with translate({recipient.name}, {donor.name})."
            )
    return StitchedModel(recipient.model, donor.model, keep, graft, translation, head).eval()


def check_stitch(recipient: EmbeddingLens, donor: EmbeddingLens, keep: Any, graft: Any, head: PooledHead) -> None:
    """Refuse numbers of blocks that are not there, and a head of another width.

    Raises:
        EmbspaceError: If so.
    """
    require_lenses(recipient, donor)
    for name, value, lens in (("keep", keep, recipient), ("graft", graft, donor)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= lens.weights.n_layers:
            raise EmbspaceError(
                f"{name}={value!r} is not between 0 and {lens.weights.n_layers}, the blocks of {lens.name}."
            )
    if not isinstance(head, PooledHead):
        raise EmbspaceError(
            f"{type(head).__name__} is not a PooledHead, which averages hidden states and scores classes."
        )
    if head.d_model != donor.weights.d_model:
        raise errors.bad_width(head.d_model, donor.name, donor.weights.d_model, "the head's directions")


def _without(prefix: str, names: Sequence[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _hooks_of(prefix: str, hooks: Hooks) -> Hooks:
    return [(name.removeprefix(prefix), function) for name, function in hooks if name.startswith(prefix)]
