"""Draws `curves` with plotly, or with matplotlib (extra ``plot``)."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from fedistill.config.units import format_bytes
from fedistill.errors import ExperimentError, nearest
from fedistill.experiment.curves import AXES, Axis, Curve, axis_title, curves, heading
from fedistill.experiment.frames import check_view
from fedistill.experiment.results import AnyResultsJson

Backend = Literal["plotly", "matplotlib"]
Figure = Any
"""A figure of plotly, or axes of matplotlib, neither of which is loaded before it is asked for."""

# Okabe and Ito's, as in the report: brown and grey for their yellow and black, which vanish on light ground.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d4b", "#4b5563")
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
"""The names that plotly and matplotlib have for them."""
_BAND = 0.18


def plot(results: AnyResultsJson, x: Axis, view: str, backend: Backend, public: bool) -> Figure:
    """Return a figure; `fedistill.experiment.api.Run.plot` says of what.

    Raises:
        ValueError: there is no such axis, view or backend.
        ExperimentError: matplotlib is not installed.
    """
    for name, value, known in (("x", x, AXES), ("backend", backend, get_args(Backend))):
        if value not in known:
            raise ValueError(f"{name} = {value!r} must be one of {', '.join(known)}.{nearest(value, known)}")
    check_view(results, view)
    drawn = curves(results, x, view, public)
    titles = heading(results, any(curve.seeds > 1 for curve in drawn)), axis_title(x, public), view
    names = [arm["name"] for arm in results["arms"]]
    looks = [names.index(curve.arm) for curve in drawn]
    return {"plotly": _with_plotly, "matplotlib": _with_matplotlib}[backend](drawn, looks, x, titles)


def _with_plotly(
    drawn: Sequence[Curve], looks: Sequence[int], x: Axis, titles: tuple[str, str, str]
) -> Figure:
    from plotly import graph_objects as go

    figure = go.Figure()
    for curve, look in zip(drawn, looks, strict=True):
        colour, (dash, _) = _look(look)
        places, level = _places(curve, drawn, x)
        points = [curve.points[-1]] * len(places) if level else curve.points
        if any(point.low < point.high for point in points):
            edges = [point.low for point in points] + [point.high for point in reversed(points)]
            figure.add_scatter(
                x=[*places, *reversed(places)],
                y=edges,
                fill="toself",
                fillcolor=colour,
                opacity=_BAND,
                line_width=0,
                mode="lines",
                legendgroup=curve.arm,
                showlegend=False,
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=places,
            y=[point.accuracy for point in points],
            name=_label(curve, level),
            legendgroup=curve.arm,
            mode="lines" if level else "lines+markers",
            line={"color": colour, "dash": "longdash" if level else dash},
            text=[f"round {point.round}" for point in points],
            hovertemplate="%{text}: %{y:.1%}, %{x}<extra>%{fullData.name}</extra>",
        )
    title, across, view = titles
    figure.update_layout(title=title, xaxis_title=across, yaxis_title=f"accuracy, {view}", showlegend=True)
    figure.update_yaxes(tickformat=".0%")
    if x == "bytes":
        figure.update_xaxes(type="log", exponentformat="SI", ticksuffix="B")
    elif x == "round":
        figure.update_xaxes(tickformat="d")
    return figure


def _with_matplotlib(
    drawn: Sequence[Curve], looks: Sequence[int], x: Axis, titles: tuple[str, str, str]
) -> Figure:
    try:
        from matplotlib import pyplot, ticker
    except ImportError as error:
        raise ExperimentError(
            f"matplotlib needs the extra `plot` ({error}): pip install 'fedistill[plot]', or write"
            ' backend="plotly"'
        ) from None

    _, axes = pyplot.subplots(layout="constrained")
    for curve, look in zip(drawn, looks, strict=True):
        colour, (_, dash) = _look(look)
        places, level = _places(curve, drawn, x)
        points = [curve.points[-1]] * len(places) if level else curve.points
        low, high = [point.low for point in points], [point.high for point in points]
        if low != high:
            axes.fill_between(places, low, high, color=colour, alpha=_BAND, linewidth=0)
        style = {"linestyle": (0, (8, 4))} if level else {"linestyle": dash, "marker": "o", "markersize": 4}
        accuracies = [point.accuracy for point in points]
        axes.plot(places, accuracies, color=colour, label=_label(curve, level), **style)
    title, across, view = titles
    axes.set(title=title, xlabel=across, ylabel=f"accuracy, {view}")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    if x == "bytes":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda count, _: format_bytes(round(count))))
    elif x == "round":
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if drawn:
        axes.legend()
    return axes


def _look(place: int) -> tuple[str, tuple[str, str]]:
    """Return the colour and the dash of an arm by its place in the run, the same in every plot of it."""
    return _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)]


def _label(curve: Curve, level: bool) -> str:
    return f"{curve.arm}: sends nothing" if level else curve.arm


def _places(curve: Curve, drawn: Sequence[Curve], x: Axis) -> tuple[list[float], bool]:
    """Return where the points are, and whether the curve is a level line.

    An arm that sends nothing has no place on an axis of bytes: a line at its last accuracy stands for it,
    from end to end of the others.
    """
    if x != "bytes" or curve.sends:
        return [point.x for point in curve.points], False
    others = [point.x for other in drawn if other.sends for point in other.points]
    return [min(others, default=1.0), max(others, default=10.0)], True
