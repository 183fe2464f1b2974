"""Train a demo model: `python -m embspace_lens.demo.train reviews.jsonl.bz2 models/reviews-small-0 --seed 0`.

A small GPT-2 is trained on any texts, on a GPU or a CPU. After an interruption the same command resumes from the last
checkpoint, and ends with the same weights as an uninterrupted run on the same machine. A finished folder is not changed.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from .. import errors
from ..files import write_json
from ..forward.texts import read_texts
from ..tables.checks import check_integer, check_number
from .corpus import END_OF_TEXT, pack, train_tokenizer

N_BYTES = 256  # each byte is a token of the tokenizer, and end-of-text is one more


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run. Runs with the same configuration and texts give the same model.

    Raises:
        EmbspaceError: If a value is out of range.
    """

    seed: int = 0
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 6
    d_vocab: int = 7168
    n_ctx: int = 128
    batch_size: int = 32
    passes: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "n_ctx", "batch_size", "passes"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("d_vocab", self.d_vocab, minimum=N_BYTES + 1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, minimum=0)
        if self.d_model % self.n_heads:
            raise errors.not_divisible("d_model", self.d_model, "n_heads", self.n_heads)


def build(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 with random initial weights, determined by the seed."""
    torch.manual_seed(config.seed)
    end = int(tokenizer.convert_tokens_to_ids(END_OF_TEXT))  # pyright: ignore[reportArgumentType]
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.n_ctx,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


def learning_rate(step: int, n_steps: int, config: TrainConfig) -> float:
    """The learning rate of a step: linear warm-up over 2 % of the steps, then cosine decay to zero."""
    warmup = max(1, n_steps // 50)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def save_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimizer state and step to one safetensors file; an interruption leaves no incomplete file."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    partial = folder / "checkpoint.safetensors.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights and optimizer state from the file written by `save_checkpoint`."""
    tensors = load_file(folder / "checkpoint.safetensors")
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            owner, _, key = name.partition(".")
            if owner == "model":
                parameters[key].copy_(tensor)
            else:
                index, _, field = key.partition(".")
                state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def checkpoint_step(folder: Path) -> int:
    """The step from which to resume; 0 without a checkpoint."""
    file = folder / "checkpoint.safetensors"
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as opened:
        return int(opened.metadata()["step"])


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, rows: np.ndarray, batch_size: int = 32) -> float:
    """The mean cross-entropy of held-out rows, in nats per token."""
    model.eval()
    losses = [
        model(ids, labels=ids).loss.item() * len(ids)
        for start in range(0, len(rows), batch_size)
        for ids in [torch.from_numpy(rows[start : start + batch_size, :-1]).long().to(model.device)]
    ]
    model.train()
    return sum(losses) / len(rows)


def train(
    rows: np.ndarray,
    held_out: np.ndarray,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    config: TrainConfig,
    *,
    device: str = "cpu",
    compile: bool = False,
    checkpoint_seconds: float = 120.0,
) -> tuple[GPT2LMHeadModel, dict]:
    """Train a model; resume from the last checkpoint in `folder`, if there is one.

    Returns:
        The model, and the numbers for its model card: number of training tokens, held-out loss.
    """
    model = build(config, tokenizer).train()
    torch.nn.Module.to(model, device)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    not_decayed = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    steps_per_pass = len(rows) // config.batch_size
    n_steps = steps_per_pass * config.passes
    first = checkpoint_step(folder)
    if first:
        load_checkpoint(folder, model, optimizer)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of) if compile else loss_of
    saved = time.monotonic()
    order = np.arange(len(rows))
    progress = tqdm(range(first, n_steps), initial=first, total=n_steps, desc=folder.name, unit="step", mininterval=5)
    for step in progress:
        if step == first or step % steps_per_pass == 0:
            order = np.random.default_rng([config.seed, step // steps_per_pass]).permutation(len(rows))
        start = step % steps_per_pass * config.batch_size
        ids = torch.from_numpy(rows[order[start : start + config.batch_size]]).long().to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, config)
        loss = compiled(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        if time.monotonic() - saved > checkpoint_seconds:
            save_checkpoint(folder, model, optimizer, step + 1)
            saved = time.monotonic()
    save_checkpoint(folder, model, optimizer, n_steps)
    facts = {
        "tokens_seen": n_steps * config.batch_size * config.n_ctx,
        "tokens_in_corpus": int(rows.shape[0]) * config.n_ctx,
        "held_out_loss": round(evaluate(model, held_out), 4),
        "held_out_tokens": int(held_out.shape[0]) * config.n_ctx,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return model.eval(), facts


def card(name: str, config: TrainConfig, facts: dict) -> str:
    """The model card, in Markdown."""
    settings = "\n".join(f"| {key} | {value} |" for key, value in asdict(config).items())
    return f"""# {name}

A GPT-2-architecture language model of {facts["parameters"]:,} parameters, trained from scratch to try
embspace_lens without a download. Its purpose is the study of its weights, not the generation of text.

- Data: {facts["corpus"]}
- Training tokens: {facts["tokens_seen"]:,} ({facts["tokens_seen"] / facts["tokens_in_corpus"]:.2f} passes over {facts["tokens_in_corpus"]:,})
- Held-out loss: {facts["held_out_loss"]:.3f} nats per token, over {facts["held_out_tokens"]:,} tokens
- Every row of training text began with `<|endoftext|>`, the token that TransformerLens prepends by default.

| setting | value |
|---|---|
{settings}
"""


def main(
    texts: Annotated[Path, typer.Argument(help="A text file, or a Parquet, JSON-lines or CSV table.")],
    folder: Annotated[Path, typer.Argument(help="The folder for the model, and for its checkpoint during training.")],
    column: Annotated[str, typer.Option(help="The column of the table that holds the texts.")] = "text",
    where: Annotated[
        str | None, typer.Option(help="A condition on the rows to train on, as in DataFrame.query.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="A condition on the rows to evaluate on; without it, 2 % of the rows.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A folder with a tokenizer; without it, one is trained.")
    ] = None,
    corpus: Annotated[str, typer.Option(help="A description of the data for the model card.")] = "",
    seed: int = 0,
    d_model: int = 192,
    n_layers: int = 4,
    n_heads: int = 6,
    d_vocab: int = 7168,
    n_ctx: int = 128,
    batch_size: int = 32,
    passes: int = 1,
    learning_rate: float = 2e-3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    compile: Annotated[bool, typer.Option(help="Use torch.compile, which is faster and needs a C++ compiler.")] = False,
) -> None:
    """Train a small GPT-2 on texts, and write it to a folder that TransformerLens can load."""
    config = TrainConfig(seed, d_model, n_layers, n_heads, d_vocab, n_ctx, batch_size, passes, learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "train.json"
    before = json.loads(settings.read_text()) if settings.exists() else {}
    if before and before["config"] != asdict(config):
        raise errors.other_settings(folder)
    if "held_out_loss" in before:
        print(f"{folder} is finished: {_result(before)}. Remove it to train it again.")
        return
    train_texts = read_texts(texts, column=column, where=where)
    trained = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else train_tokenizer(train_texts, d_vocab)
    rows = pack(train_texts, trained, n_ctx)
    if held_out is not None:
        test_rows = pack(read_texts(texts, column=column, where=held_out), trained, n_ctx)
    else:
        order = np.random.default_rng(0).permutation(len(rows))
        n_test = max(1, len(rows) // 50)
        rows, test_rows = rows[np.sort(order[n_test:])], rows[np.sort(order[:n_test])]
    if len(rows) < batch_size:
        raise errors.too_little_text(len(rows), "rows", batch_size, "one batch")
    write_json(settings, {"config": asdict(config)})
    model, facts = train(rows, test_rows, trained, folder, config, device=device, compile=compile)
    facts = {"corpus": corpus or texts.name, **facts}
    with TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        model.half().save_pretrained(partial)
        trained.save_pretrained(partial)
        counts = np.bincount(rows[:, 1:].ravel(), minlength=len(trained)).astype(np.int32)
        save_file({"counts": torch.from_numpy(counts)}, Path(partial) / "counts.safetensors")
        (Path(partial) / "README.md").write_text(card(folder.name, config, facts), encoding="utf-8")
        for file in sorted(Path(partial).iterdir()):
            file.replace(folder / file.name)
    write_json(settings, {"config": asdict(config), **facts})  # last, because a folder with a result counts as finished
    (folder / "checkpoint.safetensors").unlink()
    print(f"{folder}: {_result(facts)}")


def _result(facts: dict) -> str:
    return f"{facts['tokens_seen']:,} training tokens, held-out loss {facts['held_out_loss']:.3f}"


if __name__ == "__main__":
    try:
        typer.run(main)
    except errors.EmbspaceError as error:
        raise SystemExit(str(error)) from None
