"""Draw the README's picture: the tokens of two neurons and the pairs of a head of `reviews-small-0`, read from its weights.

python tutorials/readme_picture.py    # writes tutorials/readme.png
"""

from pathlib import Path

from plotly.subplots import make_subplots

from embspace_lens import EmbeddingLens
from embspace_lens.display import theme

K = 8


def main() -> None:
    lens = EmbeddingLens.from_pretrained("reviews-small-0", vocabulary="frequent", score="cosine")
    modal, praise = (lens.neurons(layer=3, neuron=n, weight="W_out", k=K) for n in (279, 394))
    pairs = lens.ov(layer=3, head=5, k=K)
    panels = {
        "neuron L3N279 writes": (modal["token_string"].str.strip(), modal["score"]),
        "neuron L3N394 writes": (praise["token_string"].str.strip(), praise["score"]),
        "head L3H5: source → output": (
            pairs["src_token_string"].str.strip() + " → " + pairs["dest_token_string"].str.strip(),
            pairs["score"],
        ),
    }
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), horizontal_spacing=0.1)
    for column, (labels, scores) in enumerate(panels.values(), start=1):
        figure.add_bar(
            x=scores,
            y=list(range(K)),
            text=[f" {label}" for label in labels],
            orientation="h",
            marker_color=theme.LIGHT.tint,
            textposition="inside",
            insidetextanchor="start",
            textangle=0,
            textfont={"family": theme.MONO, "size": 15, "color": theme.LIGHT.text},
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed", visible=False)
    figure.update_xaxes(title="cosine", nticks=4, rangemode="tozero")
    figure.update_xaxes(title="score, between −1 and 1", col=3)
    figure.update_layout(
        template="simple_white",
        font={"family": theme.SANS, "size": 14, "color": theme.LIGHT.text},
        showlegend=False,
        width=1000,
        height=340,
        margin={"l": 20, "r": 20, "t": 40, "b": 50},
        bargap=0.12,
    )
    figure.write_image(Path(__file__).with_name("readme.png"), scale=2)


if __name__ == "__main__":
    main()
