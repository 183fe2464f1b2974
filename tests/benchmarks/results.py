"""Measure those results on the demo models that `embspace-lens paper` does not measure yet, section by section.

Each section runs with the settings that its heading names and prints its tables as they are. Sections that read texts take them from
a data folder: reviews.jsonl (the Large Movie Review Dataset: `split`, `label`, `text`; may be compressed), relations/*.json (MAPS),
sentiment/opinion_positive.txt and opinion_negative.txt (Hu & Liu's lexicon), brown_tagged.parquet (`file`, `sentence`, `word`, `tag`).

    python -m tests.benchmarks.results factors relations

Finished sections are cached in the folder `runs/results`, so that an interrupted run resumes.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from embspace_lens import EmbeddingLens, demo
from embspace_lens.circuits import read_relations, relation_scores
from embspace_lens.factors import activity, demo_factors, level, senses
from embspace_lens.forward import read_texts

MODELS = ("reviews-small-0", "reviews-small-1", "reviews-medium-0")
Section = Callable[[Path], Iterator[str]]
SECTIONS: dict[str, Section] = {}
INTERVENTIONS: dict[str, Section] = {}  # forward passes with every head ablated: not in the file by default


def section(function: Section) -> Section:
    """Register a section under its name with hyphens."""
    SECTIONS[function.__name__.replace("_", "-")] = function
    return function


def as_text_block(table: pd.DataFrame, digits: int = 3) -> str:
    """A table as a Markdown text block."""
    return "```text\n" + table.round(digits).to_string(index=False) + "\n```\n"


def reviews_file(data: Path) -> Path:
    """The file of reviews in the data folder."""
    return next(path for stem in ("reviews", "imdb") for path in sorted(data.glob(f"{stem}.*")))


@section
def factors(data: Path) -> Iterator[str]:
    yield (
        "## Transformer factors\n\n"
        "The 1,000 factors that come with `reviews-small-0`, on 600 test reviews (128 tokens of each): explained variance and active codes by layer (`factors.activity`), the number of factors of each level (`factors.level`, without "
        "measured reach), and the commonest targets of some word factors in layer 0.\n"
    )
    model, texts = demo.load(MODELS[0]), read_texts(reviews_file(data), where="split == 'test'")[:600]
    result = activity(demo_factors(), model, texts, layers=range(4), n_contexts=200, max_tokens=128)
    yield as_text_block(result.measures)
    levels = level(result.importance, result.contexts)
    yield as_text_block(levels["level"].value_counts().rename("factors").reset_index())
    first = result.contexts.query("layer == 0 and factor in [106, 439, 590, 639, 874, 898, 966, 998]")
    rows = []
    for factor, part in first.groupby("factor"):
        counts = part["token_string"].value_counts().head(4)
        rows.append(
            {"factor": factor, "targets": ", ".join(f"{token.strip()} {count}" for token, count in counts.items())}
        )
    yield as_text_block(pd.DataFrame(rows))


@section
def word_senses(data: Path) -> Iterator[str]:
    yield (
        "## Word senses\n\n"
        "`factors.senses` on the Brown corpus: one factor's code against logistic regression on the whole hidden state and the commonest tag; held-out occurrences.\n"
    )
    brown = pd.read_parquet(data / "brown_tagged.parquet").sort_values(["file", "sentence", "position"])
    sentences = [
        list(zip(part["word"], part["tag"], strict=True)) for _, part in brown.groupby(["file", "sentence"], sort=False)
    ]
    model, dictionary = demo.load(MODELS[0]), demo_factors()
    senses_of_left = senses(dictionary, model, sentences, words={"left": ["vbd", "vbn"]})
    yield '"left", verb against the rest:\n\n' + as_text_block(
        senses_of_left[["method", "precision", "recall", "f1", "accuracy", "n"]]
    )
    table = senses(dictionary, model, sentences)
    means = table.groupby("method")[["f1", "accuracy"]].mean().reset_index()
    yield (
        f"All {table['word'].nunique()} words with 60 or more occurrences of two tags each, mean over words:\n\n"
        + as_text_block(means)
    )


@section
def relations(data: Path) -> Iterator[str]:
    yield (
        "## Relations in heads (MAPS)\n\n"
        "`relation_scores`, k = 10, promotion: for each relation with 30 or more single-token pairs the best head, its score, the mean of the same head with shuffled targets (control), and the p-value over all heads of the model.\n"
    )
    lists = read_relations(data / "relations")
    rows = []
    for name in MODELS:
        table = (
            relation_scores(EmbeddingLens.from_pretrained(name), lists)
            .query("effect == 'promotion'")
            .dropna(subset=["relation_score"])
        )
        best = table.loc[table.groupby("relation")["relation_score"].idxmax()]
        rows.append(best.assign(model=name))
    table = pd.concat(rows).sort_values(["relation", "model"])
    yield as_text_block(table[["relation", "model", "layer", "head", "relation_score", "control", "p_value", "n"]])


def script(name: str, heading: str, *extra: str) -> None:
    """Register a section that runs another script of this folder on every demo model."""

    def run(data: Path) -> Iterator[str]:
        yield heading
        for model in MODELS:
            arguments = [str(data / part) if part == "relations" else part for part in extra]
            command = [sys.executable, "-m", f"tests.benchmarks.{name}", model, *arguments, str(reviews_file(data))]
            lines = subprocess.run(
                [*command, "--where", "split == 'test'"], check=True, capture_output=True, text=True
            ).stdout
            yield f"`{model}`:\n\n```text\n{lines.rstrip()}\n```\n"

    INTERVENTIONS[name.replace("_", "-")] = run


script(
    "relations_by_ablation",
    "## Relations, tested by ablation\n\nThe cost of mean-ablating the best head of each relation, where the source word stands before the target, against the other heads of its layer (bootstrap intervals over pairs).\n",
    "relations",
)
script(
    "channels_by_ablation",
    "## Vocabulary channels, tested by ablation (ROTATE)\n\nMean change of logits when one channel is removed from its neuron: of its own tokens, of the tokens of other channels, of random tokens.\n",
)
script(
    "heads_by_ablation",
    "## Which score of a head predicts its effect?\n\nRank correlation, over all heads, of a score read from weights with the rise of the loss when the head is set to zero.\n",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections", nargs="*", help=f"out of {', '.join([*SECTIONS, *INTERVENTIONS])}; those of the file by default"
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    names = {name.rstrip("-"): function for name, function in SECTIONS.items()}
    every = names | INTERVENTIONS
    if unknown := sorted(set(options.sections) - set(every)):
        parser.error(f"{unknown[0]!r} is not one of {', '.join(every)}")
    cache = Path("runs/results")
    cache.mkdir(parents=True, exist_ok=True)
    for name in options.sections or names:
        path = cache / f"{name}.md"
        if options.sections or not path.exists():
            text = "\n".join(every[name](options.data))
            path.write_text(f"{text}\nCommand: `python -m tests.benchmarks.results --data DATA {name}`\n")
        print(path.read_text(), flush=True)


if __name__ == "__main__":
    main()
