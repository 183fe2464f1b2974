"""Train the dictionaries of a demo model: `python -m embspace_lens.demo.train_features --data DATA features`.

An SAE of the residual stream in the middle of the model and transcoders of two MLPs are trained together, in one pass
over training reviews. After an interruption the same command resumes from the last checkpoint, and ends with the same
files as an uninterrupted run on the same machine. `--evaluate` measures finished dictionaries again.
"""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from .. import errors
from ..files import make_folder, read_json, write_json, write_whole
from ..forward.texts import read_texts
from ..tables.checks import check_integer, check_number
from .catalog import is_classifier, load_base, names
from .corpus import pack
from .dictionary_evaluation import WEIGHTS, Place, SavedDictionary, evaluate, hooked
from .sparse_dictionary import Evaluated, SparseDictionary, planned_rate
from .train import checkpoint_step, load_checkpoint, save_checkpoint
from .tune import block_list

REVIEWS = "imdb.jsonl.bz2"
CHECKPOINT_SECONDS = 60.0
STANDARD_BATCHES = 8  # batches from which means and scales are taken
FIGURES = ("fvu", "l0", "inactive", "loss", "loss_spliced", "recovered_from_mean", "recovered_from_zero")


@dataclass(frozen=True)
class FeatureConfig:
    """The configuration of a run. Runs with the same configuration and texts give the same dictionaries.

    Raises:
        EmbspaceError: If a value is out of range.
    """

    model: str = "reviews-small-0"
    seed: int = 0
    saes: tuple[int, ...] = (1,)
    transcoders: tuple[int, ...] = (1, 3)
    n_features: int = 500
    k: int = 20
    n_texts: int = 8_000
    batch_size: int = 32
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        for name in ("n_features", "k", "n_texts", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("k", self.k, maximum=self.n_features, count_of="features")
        check_number("learning_rate", self.learning_rate, above=0)

    @property
    def places(self) -> list[Place]:
        """The places of the dictionaries, SAEs first."""
        return [Place("sae", layer) for layer in self.saes] + [Place("transcoder", layer) for layer in self.transcoders]


class Dictionaries(torch.nn.Module):
    """The dictionaries of a run, which share the forward passes of the model.

    Args:
        model: A Hugging Face GPT-2.
        config: The configuration of the run.

    Raises:
        EmbspaceError: If the model has fewer layers.
    """

    def __init__(self, model: Any, config: FeatureConfig) -> None:
        super().__init__()
        width, n_layers = model.config.hidden_size, len(block_list(model))
        for place in config.places:
            check_integer(
                place.kind, place.layer, minimum=0, maximum=n_layers - 1, count_of=f"layers of {config.model}"
            )
        self.model, self.config = [model.eval().requires_grad_(False)], config  # a model in a list is not a submodule
        self.trained = torch.nn.ModuleDict(
            {
                place.name: SparseDictionary(
                    width, width, config.n_features, config.k, seed=config.seed, is_sae=place.kind == "sae"
                )
                for place in config.places
            }
        )

    @torch.no_grad()
    def vectors(self, rows: np.ndarray) -> dict[str, tuple[Tensor, Tensor]]:
        """What each dictionary reads and rebuilds at the tokens of some rows."""
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        with ExitStack() as stack:
            for place in self.config.places:

                def keep(x: Tensor, y: Tensor, name: str = place.name) -> None:
                    vectors[name] = x.float().flatten(0, 1), y.float().flatten(0, 1)

                stack.enter_context(hooked(self.model[0], place, keep))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                self.model[0].base_model(torch.from_numpy(rows[:, :-1]).long(), use_cache=False)
        return vectors

    def standardise(self, rows: np.ndarray) -> None:
        """Take each dictionary's means and scales from these rows."""
        for name, (x, y) in self.vectors(rows).items():
            self.trained[name].standardise(x, y)  # pyright: ignore[reportCallIssue]

    def forward(self, rows: np.ndarray) -> dict[str, Evaluated]:
        """The loss of each dictionary on some rows; nothing is changed."""
        vectors = self.vectors(rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return {name: self.trained[name](x, y) for name, (x, y) in vectors.items()}


def train(
    rows: np.ndarray, dictionaries: Dictionaries, folder: Path, *, checkpoint_seconds: float | None = None
) -> None:
    """Train the dictionaries in one pass; resume from the last checkpoint in `folder`, if there is one.

    Ctrl-C writes a checkpoint, unless it falls into the update of the weights; then the previous checkpoint remains.
    """
    config = dictionaries.config
    seconds = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    trained = [p for p in dictionaries.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.99), fused=True)
    n_steps = len(rows) // config.batch_size
    order = np.random.default_rng(config.seed).permutation(len(rows))
    first = step = checkpoint_step(folder)
    if first:
        load_checkpoint(folder, dictionaries, optimizer)
    else:
        dictionaries.standardise(rows[order[: STANDARD_BATCHES * config.batch_size]])
    is_whole, saved = True, time.monotonic()
    progress = tqdm(range(first, n_steps), initial=first, total=n_steps, desc=folder.name, unit="step", mininterval=5)
    try:
        for index in progress:
            batch = rows[order[index * config.batch_size :][: config.batch_size]]
            evaluated = dictionaries(batch)
            torch.stack([each.loss for each in evaluated.values()]).sum().backward()
            is_whole = False
            for group in optimizer.param_groups:
                group["lr"] = planned_rate(index, n_steps, config.learning_rate)
            for module in dictionaries.trained.values():
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            for name, each in evaluated.items():
                dictionary: Any = dictionaries.trained[name]
                dictionary.update(each, batch[:, 1:].size, index)
            step = index + 1
            is_whole = True
            if index % 20 == 0:
                progress.set_postfix_str(", ".join(f"{n} {e.unexplained.item():.3f}" for n, e in evaluated.items()))
            if time.monotonic() - saved > seconds:
                save_checkpoint(folder, dictionaries, optimizer, step)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if is_whole and step > first:
            save_checkpoint(folder, dictionaries, optimizer, step)
        raise
    save_checkpoint(folder, dictionaries, optimizer, n_steps)


def write(dictionary: SparseDictionary, place: Place, folder: Path, model: str, n_ctx: int) -> None:
    """Write a dictionary in half precision, in the layout of SAELens 6."""
    tensors = dictionary.folded()
    d_in, d_sae = tensors["W_enc"].shape
    is_sae = place.kind == "sae"
    cfg = {
        "architecture": "jumprelu" if is_sae else "jumprelu_transcoder",
        "d_in": d_in,
        "d_sae": d_sae,
        **({} if is_sae else {"d_out": tensors["W_dec"].shape[1]}),
        "dtype": "float16",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": model,
            "model_class_name": "TransformerBridge",
            "hook_name": place.hook,
            **({} if is_sae else {"hook_name_out": place.output_hook}),
            "hook_head_index": None,
            "context_size": n_ctx,
            "prepend_bos": True,
            "model_from_pretrained_kwargs": {"center_writing_weights": False},
        },
    }
    write_whole(make_folder(folder) / WEIGHTS, save(tensors))
    write_json(folder / "cfg.json", cfg)


def held_out_rows(texts: list[str], tokenizer: Any, n_ctx: int, n_rows: int) -> np.ndarray:
    """Evenly spaced rows of evenly spaced texts."""
    texts = [texts[i] for i in np.linspace(0, len(texts) - 1, min(n_rows, len(texts))).astype(int)]
    rows = pack(texts, tokenizer, n_ctx)
    return rows[np.linspace(0, len(rows) - 1, min(n_rows, len(rows))).astype(int)]


def table(results: dict[str, dict[str, float]]) -> str:
    """The figures of each dictionary, one row each, in Markdown."""
    head = f"| dictionary | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}\n"
    return head + "\n".join(
        f"| {name} | {' | '.join(f'{values[figure]:.4g}' for figure in FIGURES)} |" for name, values in results.items()
    )


def card(config: FeatureConfig, facts: dict[str, Any]) -> str:
    """The card of the dictionaries, in Markdown."""
    settings = "\n".join(f"| {key} | {value} |" for key, value in asdict(config).items())
    return f"""# Dictionaries of {config.model}

JumpReLU dictionaries in the layout of SAELens 6, in half precision: an SAE of the residual stream, and transcoders, which read an MLP's input
(after the norm and its gain) and write its output. Rows of W_dec have norm 1. The model's weights were used as stored.

- Training: {facts["tokens_seen"]:,} tokens of {config.n_texts:,} training reviews
- Held out: {facts["held_out_tokens"]:,} tokens of test reviews; `inactive` counts features without activity there, and `dead`
  (in `training.json`) those without activity in the last 200,000 training tokens

{table(facts["results"])}

`recovered` = (ablated − spliced) / (ablated − original), in nats per token; the control is the mean vector, or the zero vector.

| setting | value |
|---|---|
{settings}
"""


def main(
    folder: Annotated[Path, typer.Argument(help="The folder for the dictionaries, and for the checkpoint.")],
    data: Annotated[Path, typer.Option(help=f"A folder with {REVIEWS}, or a table of reviews with a column `split`.")],
    model: Annotated[str, typer.Option(help="A demo model.")] = FeatureConfig.model,
    seed: int = FeatureConfig.seed,
    sae: Annotated[list[int] | None, typer.Option(help="A layer whose output gets an SAE; repeatable.")] = None,
    transcoder: Annotated[
        list[int] | None, typer.Option(help="A layer whose MLP gets a transcoder; repeatable.")
    ] = None,
    n_features: int = FeatureConfig.n_features,
    k: Annotated[int, typer.Option(help="The mean number of active features per token.")] = FeatureConfig.k,
    n_texts: Annotated[int, typer.Option(help="The number of training reviews.")] = FeatureConfig.n_texts,
    batch_size: Annotated[int, typer.Option(help="Rows of tokens per step.")] = FeatureConfig.batch_size,
    learning_rate: float = FeatureConfig.learning_rate,
    held_out: Annotated[int, typer.Option(help="Rows of test reviews to measure on.")] = 512,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate", help="Measure finished dictionaries; train none.")
    ] = False,
) -> None:
    """Train sparse dictionaries of a demo model, or measure them, and print the figures."""
    places = tuple(sae or FeatureConfig.saes), tuple(transcoder or FeatureConfig.transcoders)
    config = FeatureConfig(model, seed, *places, n_features, k, n_texts, batch_size, learning_rate)
    texts = data / REVIEWS if data.is_dir() else data
    settings = folder / "training.json"
    before = read_json(settings) if settings.exists() else {}
    if evaluate_only:
        print(table(measure(folder, texts, held_out)[0]))
        return
    if before and before["config"] != json.loads(json.dumps(asdict(config))):
        raise errors.other_settings(folder)
    if "results" in before:
        print(f"{folder} is finished. Remove it to train it again.\n{table(before['results'])}")
        return
    if model not in (models := [name for name in names() if not is_classifier(name)]):
        raise errors.choice("model", model, models)
    hf_model, tokenizer = load_base(model, torch.float32)
    n_ctx = hf_model.config.n_positions
    reviews = read_texts(texts, where="split != 'test'")
    chosen = np.random.default_rng(seed).permutation(len(reviews))[:n_texts]
    rows = pack([reviews[i] for i in chosen], tokenizer, n_ctx)
    if len(rows) < batch_size:
        raise errors.too_little_text(len(rows), "rows", batch_size, "one batch")
    write_json(make_folder(folder) / "training.json", {"config": asdict(config)})
    dictionaries = Dictionaries(hf_model, config)
    train(rows, dictionaries, folder, checkpoint_seconds=None)
    dead = {}
    for place in config.places:
        dictionary: Any = dictionaries.trained[place.name]
        write(dictionary, place, folder / place.name, model, n_ctx)
        dead[place.name] = dictionary.n_dead
    results, held_out_tokens = measure(folder, texts, held_out, config)
    facts = {
        "tokens_seen": len(rows) // batch_size * batch_size * n_ctx,
        "held_out_tokens": held_out_tokens,
        "results": {name: {**values, "dead": dead[name]} for name, values in results.items()},
    }
    write_whole(folder / "README.md", card(config, facts).encode())
    write_json(settings, {"config": asdict(config), **facts})  # last, because a folder with results counts as finished
    (folder / "checkpoint.safetensors").unlink()
    print(table(results))


def measure(
    folder: Path, texts: Path, n_rows: int, config: FeatureConfig | None = None
) -> tuple[dict[str, dict[str, float]], int]:
    """Measure the dictionaries of a folder on held-out reviews.

    Returns:
        The figures of each dictionary, and the number of tokens.
    """
    if config is None:
        config = _config_of(folder)
    model, tokenizer = load_base(config.model, torch.float32)
    rows = held_out_rows(read_texts(texts, where="split == 'test'"), tokenizer, model.config.n_positions, n_rows)
    dictionaries = {place.name: SavedDictionary.load(folder / place.name) for place in config.places}
    return evaluate(model.eval(), dictionaries, rows), rows[:, 1:].size


def _config_of(folder: Path) -> FeatureConfig:
    settings: Any = read_json(folder / "training.json")["config"]
    return FeatureConfig(**{**settings, "saes": tuple(settings["saes"]), "transcoders": tuple(settings["transcoders"])})


if __name__ == "__main__":
    try:
        typer.run(main)
    except errors.EmbspaceError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. The same command resumes from the checkpoint.") from None
