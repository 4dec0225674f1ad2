"""What ``synq sensitivity`` tells, as a table and as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Bars of more layers than this have no names that anybody could read.
MOST_LAYERS = 60


def sensitivity_table(found: Mapping[str, Any]) -> pandas.DataFrame:
    """One row a layer, the most sensitive first; ``found`` is what the JSON file holds."""
    return pandas.DataFrame(found["layers"])


def readable_sensitivity(found: Mapping[str, Any]) -> str:
    """The same in Markdown, with what the numbers are of."""
    table = sensitivity_table(found)
    shown = pandas.DataFrame(
        {
            "layer": table["layer"],
            "kind": table["kind"],
            "KL": table["divergence"].map("{:.3g}".format),
            "of the weight": table["weight_divergence"].map("{:.3g}".format),
            "of the input": table["input_divergence"].map("{:.3g}".format).replace("nan", ""),
            "MSE of logits": table["error"].map("{:.3g}".format),
            "parameters": table["parameters"].map("{:,}".format),
            "multiply-adds": [
                "" if pandas.isna(value) else f"{int(value):,}" for value in table["multiply_adds"]
            ],
            "kB": (table["bytes"] / 1000).map("{:.2f}".format),
        }
    )
    return "\n\n".join([shown.to_markdown(index=False, disable_numparse=True), _remark(found)])


def _remark(found: Mapping[str, Any]) -> str:
    return (
        f"{found['model']}, {found['bits']}, {found['method']}, seed {found['seed']}: each layer "
        "alone is quantized, its weight and its input (where the student's is), and all else is in "
        "full precision. KL is the mean divergence of its answers from the network's own at T = 1, "
        f"in nats, on {found['images']} synthetic images of {found['image_set']}; an empty cell is "
        "an input in full precision. kB are the codes of the weight."
    )


def sensitivity_figure(found: Mapping[str, Any]) -> "Figure":
    """A bar a layer, of those that are most sensitive, as a figure of matplotlib."""
    # The measuring stage, which imports this module too, draws nothing.
    from matplotlib.figure import Figure

    layers = found["layers"][:MOST_LAYERS]
    figure = Figure(figsize=(5.2, 0.9 + 0.17 * len(layers)), layout="constrained")
    axes = figure.subplots()
    names = [layer["layer"] for layer in reversed(layers)]
    for key, part in (("divergence", "weight and input"), ("weight_divergence", "weight")):
        values = [layer[key] for layer in reversed(layers)]
        height = 0.8 if key == "divergence" else 0.35
        axes.barh(names, values, height, label=part)
    label = f"KL divergence from the network's answers at {found['bits']} [nats]"
    axes.set_xlabel(label, fontsize=8)
    axes.set_title(f"{found['model']}: each layer alone", loc="left")
    axes.tick_params(labelsize=7)
    axes.margins(y=0.01)
    axes.legend()
    return figure


def draw_sensitivity(found: Mapping[str, Any], path: Path) -> None:
    """The same as an SVG file."""
    import matplotlib as mpl

    # The same bytes for the same numbers.
    with mpl.rc_context({"svg.hashsalt": "synq", "svg.fonttype": "none"}):
        sensitivity_figure(found).savefig(path, format="svg", metadata={"Date": None})
