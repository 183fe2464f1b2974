"""Measure the results of tutorials/results.md, section by section, and write that file.

Each section runs with the settings that its heading names and prints its tables as they are. Sections that read texts take them from
a data folder: reviews.jsonl (the Large Movie Review Dataset: `split`, `label`, `text`; may be compressed), relations/*.json (MAPS),
sentiment/opinion_positive.txt and opinion_negative.txt (Hu & Liu's lexicon), brown_tagged.parquet (`file`, `sentence`, `word`, `tag`).

    python -m tests.benchmarks.results related-pairs alignment
    python -m tests.benchmarks.results --data DATA --write tutorials/results.md

Finished sections are cached in the folder `runs/results`, so that an interrupted run resumes.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from embspace_lens import EmbeddingLens, align, demo, displacement, match_neurons, stitch_sweep
from embspace_lens.circuits import read_relations, relation_scores
from embspace_lens.evidence import hidden_state_recall, keep_k, related_pairs
from embspace_lens.factors import activity, demo_factors, level, senses
from embspace_lens.forward import read_labelled, read_texts

MODELS = ("reviews-small-0", "reviews-small-1", "reviews-medium-0")
WORDS = {"vocabulary": "words", "score": "cosine"}
FREQUENT = {"vocabulary": "frequent", "score": "cosine"}
Section = Callable[[Path], Iterator[str]]
SECTIONS: dict[str, Section] = {}


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
def related_pairs_(data: Path) -> Iterator[str]:
    yield (
        "## Keys and values share tokens\n\n"
        "Mean Jaccard overlap of the 100 tokens with the largest absolute scores (`evidence.related_pairs`), averaged over layers. Control: pairs "
        "shuffled within the layer. Whole words by centred cosine, then all tokens by inner product.\n"
    )
    rows = []
    for options in (WORDS, {}):
        for name in MODELS:
            table = related_pairs(EmbeddingLens.from_pretrained(name, **options))
            for pair, part in table.groupby("pair"):
                by_layer = part.pivot(index="layer", columns="sample", values="jaccard")
                ratio = by_layer["paired"] / by_layer["shuffled"]
                rows.append(
                    {
                        "tokens": "words, cosine" if options else "all, dot",
                        "model": name,
                        "pair": pair,
                        "paired": by_layer["paired"].mean(),
                        "shuffled": by_layer["shuffled"].mean(),
                        "ratio by layer": " ".join(f"{value:.2f}" for value in ratio),
                    }
                )
    yield as_text_block(pd.DataFrame(rows), 4)
    yield "With inner products over all tokens, the common direction of the embeddings determines most of each list, and the ratios scatter around 1.\n"


@section
def undertrained_tokens(data: Path) -> Iterator[str]:
    yield (
        "## Under-trained tokens\n\n"
        'Tokens that `vocabulary="trained"` leaves out, computed from the embeddings alone, compared with how often each token occurs in the training texts.\n'
    )
    rows = []
    for name in MODELS:
        model = demo.load(name)
        trained = set(EmbeddingLens(model, vocabulary="trained").space.token_ids.tolist())
        seen_ids, frequent_ids = (
            set(EmbeddingLens(model, vocabulary=demo.seen(n)).space.token_ids.tolist()) for n in (1, 10)
        )
        unseen_ids = set(range(model.cfg.d_vocab)) - seen_ids
        rows.append(
            {
                "model": name,
                "never seen": len(unseen_ids),
                "of these left out": len(unseen_ids - trained),
                "seen 10 times or more": len(frequent_ids),
                "of those left out": len(frequent_ids - trained),
            }
        )
    yield as_text_block(pd.DataFrame(rows))


def nearest_count(table: pd.DataFrame) -> pd.Series:
    """For each weight, the number of layers of the first model whose most similar layer has the same number."""
    nearest = table.loc[table.groupby(["weight", "layer_a"], observed=True)["correlation"].idxmax()]
    is_same_number = nearest["layer_a"] == nearest["layer_b"]
    return is_same_number.groupby(nearest["weight"], observed=True).sum()


@section
def alignment(data: Path) -> Iterator[str]:
    yield (
        "## Layers and neurons of two seeds\n\n"
        "`align(reviews-small-0, reviews-small-1)`, all tokens. *nearest*: layers for which the most similar layer of the other model has the same number; *assigned*: "
        "layers matched with their own number by the one-to-one assignment; *chance*: the mean of a random assignment. The baseline compares the same vectors coordinate by "
        "coordinate in the residual stream.\n"
    )
    a, b = (EmbeddingLens.from_pretrained(name) for name in MODELS[:2])
    rows = []
    for space in ("embedding", "residual"):
        result = align(a, b, space=space)
        counts = result.on_diagonal().set_index("weight").assign(nearest=nearest_count(result.correlation))
        rows.append(counts.reset_index().assign(space=space).rename(columns={"n_matched": "assigned"}))
    table = pd.concat(rows)[["space", "weight", "n_layers", "chance", "nearest", "assigned", "correlation"]]
    yield as_text_block(table)
    totals = table.groupby("space")[["n_layers", "nearest", "assigned"]].sum().reset_index()
    yield "All weights together:\n\n" + as_text_block(totals)
    a, b = (EmbeddingLens.from_pretrained(name, **FREQUENT) for name in MODELS[:2])
    rows = []
    for label, layer_b, space in (
        ("layer 3 with layer 3", 3, "embedding"),
        ("layer 3 with layer 0 (control)", 0, "embedding"),
        ("layer 3 with layer 3, residual (control)", 3, "residual"),
    ):
        matches = match_neurons(a, b, 3, layer_b, space=space).query("match == 'nearest'")["correlation"]
        rows.append({"neurons": label, "mean": matches.mean(), "median": matches.median()})
    yield "Correlation of each neuron of layer 3 with its nearest partner (`match_neurons`, W_out, frequent words, cosine):\n\n"
    yield as_text_block(pd.DataFrame(rows))


@section
def stitching(data: Path) -> Iterator[str]:
    yield (
        "## A classifier on another model\n\n"
        "`stitch_sweep`: the tuned blocks and the head of `reviews-small-0-sentiment` on the hidden states of models that were never tuned; accuracy on the first 200 test "
        "reviews, by the number of recipient blocks kept. `pinv` is the paper's map; `states` is `translate_states`. Controls: `random`, `transpose`, `untranslated`; `keep = −1` holds the donor's own accuracy and "
        'the share of the commonest class. One tuning seed; lenses with `space="embed"`, all tokens.\n'
    )
    texts, labels = (part[:200] for part in read_labelled(reviews_file(data), where="split == 'test'"))
    donor = EmbeddingLens.from_pretrained("reviews-small-0-sentiment", space="embed")
    donors = {"sentiment": (donor, demo.head("reviews-small-0-sentiment"))}
    kernels = ["pinv", "least_squares", "procrustes", "states", "random", "transpose", "untranslated"]
    for name in MODELS[1:]:
        recipient = EmbeddingLens.from_pretrained(name, space="embed")
        table = stitch_sweep(recipient, donors, texts, labels, graft=2, kernels=kernels, max_tokens=128)
        yield f"\nOnto `{name}`:\n\n"
        yield as_text_block(table.pivot(index="kernel", columns="keep", values="accuracy").reset_index(), 2)


@section
def tuning(data: Path) -> Iterator[str]:
    yield (
        "## What tuning changed\n\n"
        "`displacement(reviews-small-0-sentiment, reviews-small-0)`: the share of the 10 tokens at either end of a direction of the weight difference that are words of one sign (Hu & Liu's opinion lexicon; frequent words, cosine), with 95 % "
        "bootstrap intervals. Controls: the same for Gaussian directions (random) and for the weights before tuning (base).\n"
    )
    after, before = (
        EmbeddingLens.from_pretrained(name, **FREQUENT) for name in ("reviews-small-0-sentiment", MODELS[0])
    )
    positive, negative = (
        (data / "sentiment" / f"opinion_{sign}.txt").read_text(encoding="latin-1").split()
        for sign in ("positive", "negative")
    )
    table = displacement(after, before, positive, negative, layer=[2, 3])
    yield as_text_block(table)


@section
def recall(data: Path) -> Iterator[str]:
    yield (
        "## Hidden states recall their parameters\n\n"
        "`evidence.hidden_state_recall` on 50 test reviews: the share of a hidden state's top 50 tokens that are among the top tokens of its most active parameters, all tokens, mean over "
        "layers. Control: permuted tokens.\n"
    )
    texts = read_texts(reviews_file(data), where="split == 'test'")[:50]
    table = hidden_state_recall(EmbeddingLens.from_pretrained(MODELS[0]), texts)
    means = table.groupby(["target", "weight", "sample"], observed=True)["recall"].mean().unstack().reset_index()
    yield as_text_block(means)


@section
def keep_k_(data: Path) -> Iterator[str]:
    yield (
        "## Keeping k tokens\n\n"
        "`evidence.keep_k`: the cosine of inner products before and after all but the k largest entries of each projection are set to zero, with the transpose and with the pseudo-inverse; all tokens. The "
        "paper's curves cross on GPT-2 near k = 7,000 (Gaussian vectors); here they cross at much smaller k.\n"
    )
    rows = []
    for name in MODELS:
        table = keep_k(EmbeddingLens.from_pretrained(name), ks=[16, 64, 256, 1024, 4096])
        rows.append(
            table.pivot(index=["source", "k"], columns="inverse", values="similarity").reset_index().assign(model=name)
        )
    yield as_text_block(pd.concat(rows)[["model", "source", "k", "transpose", "pinv"]], 2)


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


TITLE = """# Results on the demo models

Every block below is the output of one command: `python -m tests.benchmarks.results --data DATA SECTION` prints one section, and
`python -m tests.benchmarks.results --data DATA --write tutorials/results.md` writes this file. DATA is a folder with the Large Movie Review Dataset (Maas et al. 2011), the
relations of MAPS, Hu & Liu's opinion lexicon and the tagged Brown corpus; `tests/benchmarks/results.py` states the file names.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"out of {', '.join(SECTIONS)}; those of the file by default")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--write", type=Path, help="write all sections to this file, resuming from runs/results")
    options = parser.parse_args()
    names = {name.rstrip("-"): function for name, function in SECTIONS.items()}
    if unknown := sorted(set(options.sections) - set(names)):
        parser.error(f"{unknown[0]!r} is not one of {', '.join(names)}")
    cache = Path("runs/results")
    cache.mkdir(parents=True, exist_ok=True)
    for name in options.sections or names:
        path = cache / f"{name}.md"
        if options.sections or not path.exists():
            text = "\n".join(names[name](options.data))
            path.write_text(f"{text}\nCommand: `python -m tests.benchmarks.results --data DATA {name}`\n")
        print(path.read_text(), flush=True)
    if options.write:
        options.write.write_text(TITLE + "\n".join((cache / f"{name}.md").read_text() for name in names))


if __name__ == "__main__":
    main()
