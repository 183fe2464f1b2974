"""Tune a demo model to classify: `python -m embspace_lens.demo.tune reviews-small-0 reviews.jsonl.bz2 FOLDER --where "split == 'train'"`.

The last blocks and a head over the mean of the hidden states are trained on labelled texts, the final norm left out, as in
Dar et al. (2023), §5. What is written is the difference from the base model, and the head.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from ..errors import EmbspaceError
from ..files import whole, write_json, write_whole
from ..forward.pooling import PooledHead
from ..forward.texts import read_labelled
from . import MODELS, names
from .corpus import END_OF_TEXT
from .train import checkpoint_step, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TuneConfig:
    """What decides a run: two runs with equal configurations and texts give the same classifier."""

    base: str
    seed: int = 0
    n_blocks: int = 2
    n_texts: int = 8000
    n_tokens: int = 128
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01


class Classifier(torch.nn.Module):
    """The blocks that are trained, and the head; the blocks before them run without gradients."""

    def __init__(self, base: GPT2LMHeadModel, labels: list[str], config: TuneConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        blocks = base.transformer.h
        if not 1 <= config.n_blocks <= len(blocks):
            raise EmbspaceError(
                f"n_blocks={config.n_blocks} is not between 1 and {len(blocks)}, the blocks of {config.base}."
            )
        first = len(blocks) - config.n_blocks
        self._frozen = [
            base.transformer.wte,
            base.transformer.wpe,
            blocks[:first],
        ]  # in a list: not parameters of this module
        self.blocks = torch.nn.ModuleDict({str(first + i): block for i, block in enumerate(blocks[first:])})
        self.head = PooledHead(base.config.n_embd, labels)
        torch.nn.init.zeros_(self.head.linear.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embed, positions, before = self._frozen
        with torch.no_grad():
            x = embed(tokens) + positions(torch.arange(tokens.shape[1], device=tokens.device))
            for block in before:
                x = block(x)
        for block in self.blocks.values():
            x = block(x)
        return self.head(x, mask)


def encode(texts: list[str], tokenizer: Any, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of each text behind an `<|endoftext|>`, padded with it; and which are the text's own."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    tokens = np.full((len(texts), n_tokens), end, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, ids in enumerate(tokenizer(texts, verbose=False)["input_ids"]):
        ids = ids[: n_tokens - 1]
        tokens[row, 1 : 1 + len(ids)] = ids
        mask[row, 1 : 1 + len(ids)] = True
    return tokens, mask


def batches(tokens: np.ndarray, mask: np.ndarray, order: np.ndarray, size: int, device: str):
    """Rows in the given order, no wider than their longest text: row numbers, tokens, mask."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = int(mask[rows].sum(1).max()) + 1
        yield rows, torch.from_numpy(tokens[rows, :width]).to(device), torch.from_numpy(mask[rows, :width]).to(device)


@torch.no_grad()
def accuracy(model: Classifier, tokens: np.ndarray, mask: np.ndarray, targets: np.ndarray, device: str) -> float:
    """Share of the texts whose class comes first."""
    order = np.arange(len(tokens))
    right = 0
    for rows, ids, own in batches(tokens, mask, order, 128, device):
        right += int((model(ids, own).argmax(dim=1).cpu().numpy() == targets[rows]).sum())
    return right / len(tokens)


def tune(
    model: Classifier, data: tuple[np.ndarray, np.ndarray, np.ndarray], folder: Path, config: TuneConfig, device: str
) -> None:
    """Train from the last checkpoint in `folder`, if there is one."""
    tokens, mask, targets = data
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True)
    steps = -(-len(tokens) // config.batch_size)
    n_steps = steps * config.epochs
    first = checkpoint_step(folder)
    if first:
        load_checkpoint(folder, model, optimizer)
    saved = time.monotonic()
    bar = tqdm(total=n_steps, initial=first, desc=folder.name, unit="step", mininterval=5)
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(tokens))
        for i, (rows, ids, own) in enumerate(batches(tokens, mask, order, config.batch_size, device)):
            step = epoch * steps + i
            if step < first:
                continue
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / (n_steps / 20)) * (1 - step / n_steps)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                logits = model(ids, own)
            loss = torch.nn.functional.cross_entropy(logits.float(), torch.from_numpy(targets[rows]).to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if time.monotonic() - saved > 60:
                save_checkpoint(folder, model, optimizer, step + 1)
                saved = time.monotonic()
    save_checkpoint(folder, model, optimizer, n_steps)
    bar.close()


def card(name: str, config: TuneConfig, facts: dict) -> str:
    """The model card, in Markdown."""
    settings = "\n".join(f"| {key} | {value} |" for key, value in asdict(config).items())
    return f"""# {name}

A classifier of movie reviews ({" / ".join(facts["labels"])}), made from {config.base}: its last {config.n_blocks} blocks and a linear
head over the mean of the hidden states were trained together, the final norm left out. Stored as the difference from its base.

- Data: {facts["corpus"]}
- Trained on {config.n_texts:,} texts, the first {config.n_tokens - 1} tokens of each
- Held-out accuracy: {facts["held_out_accuracy"]:.3f} over {facts["held_out_texts"]:,} texts that neither it nor its base was trained on

| setting | value |
|---|---|
{settings}
"""


def main(
    base: Annotated[str, typer.Argument(help="A demo model.")],
    texts: Annotated[Path, typer.Argument(help="A table of labelled texts: Parquet, JSON lines or CSV.")],
    folder: Annotated[
        Path, typer.Argument(help="Where the classifier goes; its checkpoint lies there while it trains.")
    ],
    column: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    where: Annotated[str | None, typer.Option(help="Rows to train on, as in DataFrame.query.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Rows to evaluate on.")] = None,
    corpus: Annotated[str, typer.Option(help="What the card says of the data.")] = "",
    seed: int = 0,
    n_blocks: int = 2,
    n_texts: int = 8000,
    n_tokens: int = 128,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Tune a demo model's last blocks and a head on labelled texts, and write the difference."""
    if base not in names():
        raise EmbspaceError(f"{base!r} is not a demo model: {', '.join(names())}.")
    config = TuneConfig(base, seed, n_blocks, n_texts, n_tokens, epochs, batch_size, learning_rate)
    found, classes = read_labelled(texts, column=column, label=label, where=where)
    labels = sorted(set(classes))
    chosen = np.random.default_rng(config.seed).permutation(len(found))[:n_texts]
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tokenizer", local_files_only=True)
    hf_model: Any = AutoModelForCausalLM.from_pretrained(MODELS / base, dtype=torch.float32, local_files_only=True)
    hf_model.to(device)
    before = {name: tensor.clone() for name, tensor in hf_model.state_dict().items()}
    model = Classifier(hf_model, labels, config).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    data = encode([found[i] for i in chosen], tokenizer, n_tokens)
    tune(model, (*data, np.array([labels.index(classes[i]) for i in chosen])), folder, config, device)

    facts = {"labels": labels, "corpus": corpus, "held_out_accuracy": float("nan"), "held_out_texts": 0}
    if held_out is not None:
        test, test_classes = read_labelled(texts, column=column, label=label, where=held_out)
        targets = np.array([labels.index(c) for c in test_classes])
        facts |= {
            "held_out_accuracy": round(accuracy(model, *encode(test, tokenizer, n_tokens), targets, device), 4),
            "held_out_texts": len(test),
        }
    change = {
        f"difference.{name}": (tensor - before[name]).half()
        for name, tensor in hf_model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    tensors = change | {f"head.{name}": tensor.float() for name, tensor in model.head.state_dict().items()}
    with whole(folder / "difference.safetensors") as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
    write_json(folder / "difference.json", {"base": base, "labels": labels, "config": asdict(config), **facts})
    write_whole(folder / "README.md", card(folder.name, config, facts).encode())
    (folder / "checkpoint.safetensors").unlink()
    print(f"{folder.name}: held-out accuracy {facts['held_out_accuracy']}")


if __name__ == "__main__":
    typer.run(main)
