"""Pictures of answers, PNG or SVG by the name of the file. Drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broker.core.errors import TapmeshError
from broker.flows.answers.answer import Answer, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BLUE, RED, GREY = "#1f2933", "#d9dee4", "#2f6fb0", "#c2413a", "#8a94a0"
_UNITS: dict[Kind, tuple[float, tuple[str, ...]]] = {
    "bytes": (1000, ("B", "kB", "MB", "GB", "TB", "PB")),
    "rate": (1000, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")),
    "count": (1000, ("", "k", "M", "G", "T")),
}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """TapmeshError: matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise TapmeshError("pictures are drawn with matplotlib, which is not installed: pip install 'tapmesh[flows]'") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tapmesh"  # the same answer, the same file
    matplotlib.rcParams["text.parse_math"] = False  # names come from the traffic, and a $ in one is no formula
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def save(figure: Figure, axes: Axes, path: Path, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=12)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def ticks(axis: Any, kind: Kind) -> None:
    """Decimal units on an axis."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value, kind)))


def scaled(value: float, kind: Kind) -> str:
    """`1.5 GB`, `40 Mbit/s`; plain for what has no unit."""
    step, units = _UNITS.get(kind, (1000, ("", "k", "M", "G", "T")))
    at = 0
    while abs(value) >= step * 0.9995 and at < len(units) - 1:
        value, at = value / step, at + 1
    return f"{value:.3g} {units[at]}".strip()


def draw(answer: Answer, path: Path) -> None:
    """As the answer asks for; bars of its first figure otherwise."""
    if answer.picture is not None:
        answer.picture(answer, path)
    else:
        bars(answer, path)


def bars(answer: Answer, path: Path) -> None:
    at = next(i for i, column in enumerate(answer.columns) if column.kind not in ("text", "number"))
    kind = answer.columns[at].kind
    names = [" > ".join(str(cell) for cell in row[:at]) for row in answer.rows]
    values = [float(row[at] or 0) for row in answer.rows]
    figure, axes = new_figure(9, 1.4 + 0.32 * max(3, len(names)))
    places = range(len(names))
    axes.barh(places, values, color=BLUE, height=0.68)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.grid(visible=False)
    axes.xaxis.grid(color=FAINT)
    axes.set_xlim(0, max(values, default=1) * 1.12 or 1)
    ticks(axes.xaxis, kind)
    for place, value in zip(places, values, strict=True):
        axes.annotate(scaled(value, kind), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    if not names:
        axes.text(0.5, 0.5, "nothing", transform=axes.transAxes, ha="center", color=GREY)
    save(figure, axes, path, answer.title)


def heat_map(path: Path, title: str, names: list[str], cells: dict[tuple[int, int], float], kind: Kind) -> None:
    """`cells`: (from, to) as places in `names`. What is not there stays white."""
    import numpy as np
    from matplotlib.colors import LogNorm

    n = max(1, len(names))
    side = 1.8 + 0.52 * n
    figure, axes = new_figure(max(6.5, side + 2.2, 1.8 + 0.09 * len(title)), max(4.5, side))
    grid = np.full((n, n), np.nan)
    for (row, column), value in cells.items():
        grid[row, column] = value if value > 0 else np.nan
    top = max(cells.values(), default=1) or 1
    low = min((value for value in cells.values() if value > 0), default=1)
    least, most = max(low / 3, top / 1e6), top * 1.5
    axes.imshow(grid, cmap="Blues", norm=LogNorm(least, most))
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.8)
    axes.tick_params(which="minor", length=0, top=False, bottom=False, left=False)
    for (row, column), value in cells.items():
        if value > 0:
            dark = np.log(value / least) > 0.5 * np.log(most / least)
            words = scaled(value, kind).replace(" ", "\n")
            axes.text(column, row, words, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    axes.set_ylabel("from", color=GREY)
    axes.set_xlabel("to", color=GREY)
    axes.xaxis.set_label_position("top")
    save(figure, axes, path, title)


def rates(path: Path, title: str, times: list[float], panels: Sequence[tuple[str, Any, int, float]]) -> None:
    """(name, bits/s of each step, capacity or 0, 95th percentile) below each other; times are s since 1970."""
    import numpy as np

    figure, first = new_figure(9, 1.0 + 1.7 * max(1, len(panels)))
    first.remove()
    grid = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)
    stamps = np.array(times).astype("datetime64[s]")
    for axes, (name, values, capacity, p95) in zip(grid[:, 0], panels, strict=False):
        plain(axes)
        over = capacity and p95 > capacity
        axes.fill_between(stamps, values, step="post", color=RED if over else BLUE, alpha=0.22, linewidth=0)
        axes.step(stamps, values, where="post", color=RED if over else BLUE, linewidth=1.1)
        level(axes, p95, "95 %", INK, ":", "bottom" if p95 > capacity else "top")
        if capacity and capacity < 4 * max(values.max(), 1):
            level(axes, capacity, "full", RED, "--", "top" if p95 > capacity else "bottom")
        ticks(axes.yaxis, "rate")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
    dates(grid[-1, 0])
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def level(axes: Axes, value: float, name: str, colour: str, style: str, side: Literal["top", "bottom"]) -> None:
    """A line across, with its name on the right; `side`: which part of the name the line is at."""
    axes.axhline(value, color=colour, linewidth=0.9, linestyle=style)
    where = ("axes fraction", "data")
    axes.annotate(name, (1, value), (4, 0), xycoords=where, textcoords="offset points", va=side, fontsize=8, color=colour)


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.yaxis.grid(color=FAINT)
    axes.set_axisbelow(True)


def dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def forecast(path: Path, title: str, history: Any, found: Any) -> None:
    """What was, what is expected, and between what it lies; dashed where it is full."""
    import numpy as np

    figure, axes = new_figure(9, 4.2)
    n, ahead = len(history.values), len(found.path.mean)
    seconds = (history.begins_ns + np.arange(n + ahead) * history.step_ns) // 10**9
    stamps = seconds.astype("datetime64[s]")
    axes.plot(stamps[:n], history.values, color=INK, linewidth=0.9, label="measured")
    axes.fill_between(
        stamps[n:],
        np.maximum(0, found.path.low),
        np.maximum(0, found.path.high),
        color=BLUE,
        alpha=0.22,
        linewidth=0,
        label="90 % interval",
    )
    axes.plot(stamps[n:], np.maximum(0, found.path.mean), color=BLUE, linewidth=1.2, label="expected")
    highest = max(float(history.values.max()), float(found.path.high.max()))
    if history.capacity and history.capacity < 3 * highest:
        level(axes, history.capacity, "full", RED, "--", "bottom")
    axes.set_ylim(0, 1.08 * max(highest, history.capacity if history.capacity < 3 * highest else 0) or 1)
    axes.margins(x=0)
    ticks(axes.yaxis, history.kind)
    dates(axes)
    axes.legend(loc="lower left", frameon=False, fontsize=8.5)
    save(figure, axes, path, title)
