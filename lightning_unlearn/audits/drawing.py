"""What all figures share: colours that everybody can tell apart, and how they are written."""

from pathlib import Path

from matplotlib.figure import Figure

INK, BLUE, SKY, GREEN, VERMILLION = "#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00"  # Okabe and Ito's safe set
ORANGE, PURPLE = "#E69F00", "#CC79A7"


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure at its own size; equal figures give equal files."""
    figure.savefig(path, format="png", metadata={"Software": None})
