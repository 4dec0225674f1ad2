"""Figures of plain numbers; what they show is read elsewhere.

Every function gives a figure of matplotlib, which :func:`svg` writes. Nothing here touches pyplot,
which has windows and a state of its own.
"""

import functools
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

STYLE = Path(__file__).with_name("figures.mplstyle")
INK = "#222222"  # of the style; a page has its own
LABELLED = 20  # ticks with a name each, at most
SHORT, LONG = 3, 16  # letters of a name that is not turned, and of one that is not cut
LETTER = 0.07  # inches, of one of those
TICKS = 9  # of a logarithmic axis
MOST_LAYERS = 60  # whose names anybody could read


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the settings of :data:`STYLE`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def svg(figure: Figure) -> str:
    """The figure as the text of an SVG file: the same for the same numbers."""
    text = io.StringIO()
    with matplotlib.style.context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def inline(text: str, name: str, label: str) -> str:
    """An SVG file's text as an element of a page.

    Its ids begin with ``name``, since a page has several; its ink is the page's; ``label`` is what
    those are told who do not see it.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{escaped}"', 1)


def _plain(axis: Axis) -> None:
    """Numbers at a logarithmic axis as people write them, and a third of a figure's time less."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=TICKS))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _fitted(names: Sequence[str]) -> tuple[list[str], int]:
    """Names of classes that are short enough for ticks, and by how many degrees they are turned."""
    cut = [name if len(name) <= LONG else f"{name[: LONG - 1]}…" for name in names]
    return cut, 90 if any(len(name) > SHORT for name in cut) else 0


@styled
def accuracy_by_bits(
    widths: Sequence[str],
    methods: Mapping[str, Sequence[tuple[float, float] | None]],
    *,
    full: float | None,
    real: Collection[str] = (),
    measure: str = "top-1 [%]",
) -> Figure:
    """Mean and standard deviation of each method at each width; None where there is no run.

    ``full`` is a line across, and the methods that were trained on ``real`` images, which may be
    others' ceilings, are dashed.
    """
    figure = Figure()
    axes = figure.subplots()
    if full is not None:
        axes.axhline(full, color=INK, linewidth=1, linestyle=":", label="full precision")
    for name, points in methods.items():
        known = [(place, *point) for place, point in enumerate(points) if point is not None]
        places, means, deviations = zip(*known, strict=True)
        style = "--" if name in real else "-"
        label = f"{name} (real images)" if name in real else name
        axes.errorbar(places, means, deviations, linestyle=style, capsize=3, label=label)
    axes.set_xticks(range(len(widths)), [width.upper() for width in widths])
    axes.margins(x=0.15)
    axes.set_xlabel("bits of weights and activations")
    axes.set_ylabel(measure)
    axes.legend()
    return figure


@styled
def size_and_accuracy(
    points: Sequence[tuple[str, str, float, float]],
    *,
    full: tuple[float, float] | None,
    measure: str = "top-1 [%]",
) -> Figure:
    """Method, label, kB and mean top-1 of each student, and the front that none of them beats.

    ``full`` are kB and top-1 of the full-precision network.
    """
    figure = Figure()
    axes = figure.subplots()
    for method in dict.fromkeys(point[0] for point in points):
        own = [point for point in points if point[0] == method]
        axes.plot([p[2] for p in own], [p[3] for p in own], linestyle="", label=method)
        for _, label, size, top1 in own:
            axes.annotate(label, (size, top1), (5, 4), textcoords="offset points", fontsize=8)
    if full is not None:
        axes.plot(*full, color=INK, marker="*", markersize=9, linestyle="", label="full precision")
    front = pareto([(size, top1) for _, _, size, top1 in points])
    axes.step(
        *zip(*front, strict=True), where="post", color=INK, linewidth=0.8, alpha=0.6, marker=""
    )
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.margins(0.15)
    axes.set_xlabel("size [kB], logarithmic")
    axes.set_ylabel(measure)
    axes.legend()
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one is both smaller and more accurate than, by their size."""
    front: list[tuple[float, float]] = []
    for size, top1 in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or top1 > front[-1][1]:
            front.append((size, top1))
    return front


@styled
def picture_rows(rows: Mapping[str, numpy.ndarray], columns: Sequence[str]) -> Figure:
    """Images ``[K, C, H, W]`` in [0, 1] of each label in a row, C 1 or 3; a named column each."""
    count = len(columns)
    height, width = next(iter(rows.values())).shape[-2:]
    gap = -(-width // 12)
    # One picture of all of them: to lay out axes for each takes longer than all the rest.
    tiled = numpy.zeros((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 4))
    for line, images in enumerate(rows.values()):
        for place, image in enumerate(images):
            down, right = line * (height + gap), place * (width + gap)
            tile = tiled[down : down + height, right : right + width]
            tile[..., :3] = numpy.clip(image, 0, 1).transpose(1, 2, 0)
            tile[..., 3] = 1
    cut, turned = _fitted(columns)
    above = LETTER * max(map(len, cut)) if turned else 0.0
    figure = Figure(figsize=(0.62 * count + 0.9, 0.68 * len(rows) + 0.25 + above))
    axes = figure.subplots()
    axes.imshow(tiled, interpolation="nearest")
    middles = [(width - 1) / 2 + place * (width + gap) for place in range(count)]
    axes.set_xticks(middles, cut, rotation=turned)
    axes.set_yticks([(height - 1) / 2 + line * (height + gap) for line in range(len(rows))], rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figure


@styled
def spectra(curves: Mapping[str, tuple[numpy.ndarray, numpy.ndarray]]) -> Figure:
    """Amplitude by frequency [cycles per pixel] of each kind of images."""
    figure = Figure()
    axes = figure.subplots()
    for label, (frequencies, amplitudes) in curves.items():
        axes.semilogy(frequencies, amplitudes, label=label, markersize=4)
    _plain(axes.yaxis)
    axes.set_xlabel("frequency [cycles per pixel]")
    axes.set_ylabel("amplitude, logarithmic")
    axes.legend()
    return figure


@styled
def training_curves(terms: Mapping[str, Sequence[float | None]]) -> Figure:
    """Each term of the loss over the epochs; None where it was not computed."""
    figure = Figure()
    axes = figure.subplots()
    for name, values in terms.items():
        known = [(epoch, v) for epoch, v in enumerate(values) if v is not None and v > 0]
        if known:
            axes.plot(*zip(*known, strict=True), label=name.replace("_", " "))
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch (0: calibrated, not trained)")
    axes.set_ylabel("loss, logarithmic")
    if axes.lines:
        axes.legend()
    return figure


@styled
def losses_of_classes(names: Sequence[str], lost: Mapping[str, Sequence[float]]) -> Figure:
    """Points that each class lost to full precision, a kind of bars each; at most ``LABELLED``.

    Of more classes those are shown that lost most of the last kind, which is what is shipped.
    """
    kinds = list(lost)
    order = list(range(len(names)))
    if len(names) > LABELLED:
        order = sorted(order, key=lambda place: -lost[kinds[-1]][place])[:LABELLED]
    figure = Figure()
    axes = figure.subplots()
    width = 0.8 / len(kinds)
    places = numpy.arange(len(order))
    for number, kind in enumerate(kinds):
        shift = (number - (len(kinds) - 1) / 2) * width
        axes.bar(places + shift, [lost[kind][place] for place in order], width, label=kind)
    axes.axhline(0, color=INK, linewidth=0.8)
    cut, turned = _fitted([names[place] for place in order])
    axes.set_xticks(places, cut, rotation=turned)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("class" if len(order) == len(names) else f"the {LABELLED} that lost most")
    axes.set_ylabel("points lost")
    axes.legend()
    return figure


@styled
def stage_seconds(labels: Sequence[str], stages: Mapping[str, Sequence[float]]) -> Figure:
    """Seconds of each stage, of each row; a stage that is not known is 0 long."""
    figure = Figure(figsize=(5.2, 1.1 + 0.3 * len(labels)))
    axes = figure.subplots()
    start = numpy.zeros(len(labels))
    hatches = ("", "//", "..", "xx", "\\\\")
    for number, (stage, values) in enumerate(stages.items()):
        lengths = numpy.nan_to_num(numpy.asarray(values, dtype=float))
        bars: Any = axes.barh(labels, lengths, left=start, label=stage, height=0.65)
        for bar in bars:
            bar.set_hatch(hatches[number % len(hatches)])
        start = start + lengths
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(stages), borderaxespad=0)
    return figure


@styled
def difficulties(values: numpy.ndarray, threshold: float) -> Figure:
    """How many images ``[N]`` have which difficulty in [0, 1], and the threshold."""
    figure = Figure()
    axes = figure.subplots()
    axes.hist(values, bins=20, range=(0, 1), log=True)
    _plain(axes.yaxis)
    axes.set_ylim(bottom=0.5)
    axes.axvline(
        threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {threshold:g}"
    )
    axes.set_xlabel("difficulty: 1 - probability of the label")
    axes.set_ylabel("images, logarithmic")
    axes.legend()
    return figure


@styled
def errors_of_layers(kinds: Mapping[str, Mapping[str, float]]) -> Figure:
    """The error of each layer by its name, a curve each kind, from the first layer down."""
    names = list(next(iter(kinds.values())))
    step = -(-len(names) // MOST_LAYERS)
    figure = Figure(figsize=(5.2, 0.9 + 0.14 * len(names[::step])))
    axes = figure.subplots()
    for kind, errors in kinds.items():
        values = [errors[name] for name in names]
        axes.plot(values, range(len(names)), label=kind, markersize=4)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("relative error")
    axes.legend()
    return figure


@styled
def confusions(difference: numpy.ndarray, names: Sequence[str]) -> Figure:
    """How often a class (row) is taken for another (column) more than before, ``[C, C]``.

    The diagonal is not shown. Of more than ``LABELLED`` classes the pairs that grew most are.
    """
    apart = numpy.where(numpy.eye(len(names), dtype=bool), 0.0, difference)
    figure = Figure()
    axes = figure.subplots()
    if len(names) > LABELLED:
        order = numpy.argsort(-apart, axis=None, kind="stable")[:LABELLED]
        pairs = [divmod(int(place), len(names)) for place in order]
        cut, _ = _fitted(names)
        # At places and not at names, of which two that were cut may be the same.
        axes.barh(range(len(pairs)), [apart[pair] for pair in pairs])
        labels = [f"{cut[own]} as {cut[other]}" for own, other in pairs]
        axes.set_yticks(range(len(pairs)), labels)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=6)
        axes.set_xlabel("images more than in full precision")
        return figure
    largest = max(float(numpy.abs(apart).max()), 1.0)
    axes.imshow(apart, cmap="PuOr", vmin=-largest, vmax=largest)
    for own, other in zip(*numpy.nonzero(apart), strict=True):
        value = apart[own, other]
        # On the ends of the colours, which are dark, and on none of them, which is the page's.
        colour = "#ffffff" if abs(value) > 0.7 * largest else "#000000"
        axes.text(other, own, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=colour)
    cut, turned = _fitted(names)
    if turned:
        figure.set_figheight(figure.get_figheight() + LETTER * max(map(len, cut)))
    axes.set_xticks(range(len(names)), cut, rotation=turned)
    axes.set_yticks(range(len(names)), cut)
    axes.grid(visible=False)
    axes.set_xlabel("is taken for")
    axes.set_ylabel("class")
    return figure


@styled
def differences(means: Mapping[str, float], deviations: Mapping[str, float]) -> Figure:
    """Points of each method above another one, with a standard deviation where it is known."""
    figure = Figure(figsize=(5.2, 0.9 + 0.3 * len(means)))
    axes = figure.subplots()
    spread = [deviations[name] for name in means]
    axes.barh(list(means), list(means.values()), 0.6, xerr=spread, capsize=3, ecolor=INK)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("points of top-1")
    return figure
