"""The figure of the relearning test: the rate against environment steps, all models in one."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_unlearn.audits.drawing import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION
from lightning_unlearn.audits.relearning import MAIN, History

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
_NOTE = "#555555"


def relearn_figure(
    histories: Mapping[str, History],
    thresholds: Mapping[str, Mapping[str, float]],
    expert_rate: float,
    unit: str,
    episodes: int,
) -> Figure:
    """Curves with ±1 standard error over the episodes of an evaluation; thresholds as lines.

    Args:
        histories: Model → what was seen of it.
        thresholds: Model → name of a threshold → rate; the main one is drawn once, the others in a model's colour.
        expert_rate: The unsafe expert's own rate.
        unit: Of all rates.
        episodes: Behind every point.
    """
    figure = Figure(figsize=(8, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for index, (model, history) in enumerate(histories.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        steps, rates = zip(*history.rates, strict=True)
        errors = [rate.standard_error or 0.0 for rate in rates]
        ax.errorbar(
            steps, [r.mean for r in rates], errors, color=colour, marker="o", markersize=3, capsize=2, label=model
        )
        for name, value in thresholds[model].items():
            if name != MAIN:
                ax.axhline(value, color=colour, linewidth=0.6, linestyle="--", alpha=0.6)
    main = next(iter(thresholds.values()))[MAIN]
    ax.axhline(main, color=INK, linewidth=1.2, linestyle="--", label=f"threshold {main:.4f}")
    ax.axhline(expert_rate, color=_NOTE, linewidth=1.2, linestyle=":", label=f"unsafe expert {expert_rate:.4f}")
    ax.set(xlabel="environment steps of relearning", ylabel=unit)
    ax.set_ylim(bottom=0)
    ax.set_title(f"mean of {episodes} episodes ± 1 standard error", fontsize=9, color=_NOTE, loc="right")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="best")
    return figure
