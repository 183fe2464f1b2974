"""Tune a causal model to classify: `python -m embspace_lens.demo.tune reviews-small-0 reviews.jsonl.bz2 FOLDER --where "split == 'train'"`.

The last blocks, and a linear head on the mean of the hidden states, are trained on labelled texts. The final norm is left
out, as in Dar et al. (2023), §5. The result is the difference from the weights of the base model, and the head.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import whole, write_json, write_whole
from ..forward.pooling import PooledHead
from ..forward.texts import read_labelled
from ..tables.checks import check_integer, check_number
from .catalog import load_base, names
from .train import checkpoint_step, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class TuneConfig:
    """The configuration of a run. Runs with the same configuration and texts give the same classifier.

    Raises:
        EmbspaceError: If a value is out of range.
    """

    base: str
    seed: int = 0
    n_blocks: int = 2
    n_texts: int = 8000
    n_tokens: int = 128
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("n_blocks", "n_texts", "epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("n_tokens", self.n_tokens, minimum=2)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, minimum=0)


class Classifier(torch.nn.Module):
    """The trained blocks and the head, as parameters; the embedding and the earlier blocks run without gradients.

    Args:
        base: A Hugging Face causal language model.
        labels: The names of the classes.
        config: The configuration of the run.

    Raises:
        EmbspaceError: If the model has fewer blocks, or its blocks cannot be found.
    """

    def __init__(self, base: Any, labels: list[str], config: TuneConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        blocks = block_list(base)
        check_integer("n_blocks", config.n_blocks, minimum=1, maximum=len(blocks), count_of=f"blocks of {config.base}")
        first = len(blocks) - config.n_blocks
        # Modules in a list are not submodules, so that their parameters are not trained.
        self._base = [base.base_model.requires_grad_(False)]
        self.trained_blocks = torch.nn.ModuleDict({str(first + i): block for i, block in enumerate(blocks[first:])})
        self.trained_blocks.requires_grad_(True)
        self.head = PooledHead(base.config.get_text_config().hidden_size, labels)
        torch.nn.init.zeros_(self.head.linear.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = []
        last = list(self.trained_blocks.values())[-1]
        hook = last.register_forward_hook(lambda module, inputs, output: states.append(output))
        try:
            self._base[0](input_ids=tokens, use_cache=False)
        finally:
            hook.remove()
        x = states[0][0] if isinstance(states[0], tuple) else states[0]  # some blocks also return attention weights
        return self.head(x, mask)


def block_list(model: Any) -> torch.nn.ModuleList:
    """The blocks of a Hugging Face causal language model.

    Raises:
        EmbspaceError: If the model has no list of as many modules as its configuration has layers.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise errors.no_block_list(type(model).__name__, n_layers)


def encode(texts: list[str], tokenizer: Any, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of each text after a special token, which is also the padding; and a mask of the text's own tokens.

    The special token is the one that begins texts; without one, the one that ends them.
    """
    end = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if end is None:
        raise errors.no_special_token(tokenizer.name_or_path)
    tokens = np.full((len(texts), n_tokens), end, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, ids in enumerate(tokenizer(texts, verbose=False, add_special_tokens=False)["input_ids"]):
        ids = ids[: n_tokens - 1]
        tokens[row, 1 : 1 + len(ids)] = ids
        mask[row, 1 : 1 + len(ids)] = True
    return tokens, mask


def batches(
    tokens: np.ndarray, mask: np.ndarray, order: np.ndarray, size: int, device: str
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Batches of rows in the given order, as wide as their longest text: row indices, tokens, mask."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = int(mask[rows].sum(1).max()) + 1
        yield rows, torch.from_numpy(tokens[rows, :width]).to(device), torch.from_numpy(mask[rows, :width]).to(device)


@torch.no_grad()
def accuracy(model: Classifier, tokens: np.ndarray, mask: np.ndarray, targets: np.ndarray, device: str) -> float:
    """The share of texts for which the right class has the largest logit."""
    order = np.arange(len(tokens))
    n_correct = 0
    for rows, ids, own in batches(tokens, mask, order, 128, device):
        n_correct += int((model(ids, own).argmax(dim=1).cpu().numpy() == targets[rows]).sum())
    return n_correct / len(tokens)


def tune(
    model: Classifier, data: tuple[np.ndarray, np.ndarray, np.ndarray], folder: Path, config: TuneConfig, device: str
) -> None:
    """Train the classifier; resume from the last checkpoint in `folder`, if there is one."""
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
head on the mean of the hidden states were trained together, without the final norm. The files hold the difference from the base.

- Data: {facts["corpus"]}
- Trained on {config.n_texts:,} texts, the first {config.n_tokens - 1} tokens of each
- Held-out accuracy: {facts["held_out_accuracy"]:.3f} over {facts["held_out_texts"]:,} texts on which neither the classifier nor its base was trained

| setting | value |
|---|---|
{settings}
"""


def main(
    base: Annotated[str, typer.Argument(help="A demo model, a folder, or a causal model of the Hugging Face hub.")],
    texts: Annotated[Path, typer.Argument(help="A table of labelled texts: Parquet, JSON lines or CSV.")],
    folder: Annotated[
        Path, typer.Argument(help="The folder for the classifier, and for its checkpoint during training.")
    ],
    column: Annotated[str, typer.Option(help="The column that holds the texts.")] = "text",
    label: Annotated[str, typer.Option(help="The column that holds the labels.")] = "label",
    where: Annotated[
        str | None, typer.Option(help="A condition on the rows to train on, as in DataFrame.query.")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="A condition on the rows to evaluate on.")] = None,
    corpus: Annotated[str, typer.Option(help="A description of the data for the model card.")] = "",
    seed: int = 0,
    n_blocks: int = 2,
    n_texts: int = 8000,
    n_tokens: int = 128,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the last blocks of a model and a head on labelled texts, and write the difference."""
    if base not in names() and Path(base).is_dir():
        base = str(Path(base).resolve())
    config = TuneConfig(base, seed, n_blocks, n_texts, n_tokens, epochs, batch_size, learning_rate)
    labelled_texts, classes = read_labelled(texts, column=column, label=label, where=where)
    labels = sorted(set(classes))
    chosen = np.random.default_rng(config.seed).permutation(len(labelled_texts))[:n_texts]
    hf_model, tokenizer = load_base(base, torch.float32)
    hf_model.to(device)
    before = {name: tensor.clone() for name, tensor in hf_model.state_dict().items()}
    model = Classifier(hf_model, labels, config).to(device)
    folder.mkdir(parents=True, exist_ok=True)
    data = encode([labelled_texts[i] for i in chosen], tokenizer, n_tokens)
    tune(model, (*data, np.array([labels.index(classes[i]) for i in chosen])), folder, config, device)

    facts = {"labels": labels, "corpus": corpus, "held_out_accuracy": float("nan"), "held_out_texts": 0}
    if held_out is not None:
        test, test_classes = read_labelled(texts, column=column, label=label, where=held_out)
        targets = np.array([labels.index(c) for c in test_classes])
        facts |= {
            "held_out_accuracy": round(accuracy(model, *encode(test, tokenizer, n_tokens), targets, device), 4),
            "held_out_texts": len(test),
        }
    difference = {
        f"difference.{name}": (tensor - before[name]).half()
        for name, tensor in hf_model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    tensors = difference | {f"head.{name}": tensor.float() for name, tensor in model.head.state_dict().items()}
    with whole(folder / "difference.safetensors") as partial:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial)
    write_json(folder / "difference.json", {"base": base, "labels": labels, "config": asdict(config), **facts})
    write_whole(folder / "README.md", card(folder.name, config, facts).encode())
    (folder / "checkpoint.safetensors").unlink()
    print(f"{folder.name}: held-out accuracy {facts['held_out_accuracy']}")


if __name__ == "__main__":
    typer.run(main)
