"""What the figures of the commands have in common. Needs matplotlib."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and by markers or dashes without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
FAINT = "0.88"
WIDTH = 8.4  # inches at 100 dots: what a README shows without shrinking


def figure(height: float, title: str, width: float = WIDTH) -> Figure:
    """An empty figure under a title, whose parts make room for each other."""
    made = Figure(figsize=(width, height), dpi=100, layout="constrained")
    made.suptitle(title, fontsize=12)
    return made


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    FigureCanvasAgg(figure)
    written = BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()
