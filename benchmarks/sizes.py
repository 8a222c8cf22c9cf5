"""The table of sizes that are measured; what is run at each size belongs in the other files."""

from typing import NamedTuple


class Size(NamedTuple):
    """T steps, B batch rows, D inputs, H hidden units."""

    T: int
    B: int
    D: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-D{self.D}-H{self.H}"


#: What is timed at each size.
TASKS = ("forward", "backward", "training step")


def multiplications(size: Size, task: str) -> int:
    """Count the multiplications of a task, each with its addition: of dU, dW and db, x and h0 need no gradient."""
    T, B, D, H = size
    forward, backward = T * B * H * (D + H), T * B * H * (D + 2 * H)
    return dict(zip(TASKS, (forward, backward, forward + backward), strict=True))[task]


#: Each size and where its shape comes from. One more line is one more size.
SIZES: dict[Size, str] = {
    Size(10, 1, 10, 20): "coursework: small enough to print every number",
    Size(20, 1, 57, 128): "a name, letter by letter, 57 different characters: name classification",
    Size(25, 1, 65, 100): "min-char-rnn: 25 characters at a time, a text of 65 different ones, 100 units",
    Size(28, 64, 28, 128): "an image of 28 x 28 pixels read row by row, as with MNIST",
    Size(100, 1, 32, 32): "one sequence, a small network: nearly all of it calls",
    Size(100, 32, 64, 128): "middling in every respect",
    Size(500, 64, 6, 256): "few channels over many steps, as from sensors",
    Size(1000, 1, 64, 128): "one long sequence: nearly all of it sequential",
    Size(1000, 16, 32, 64): "long sequences, small network",
    Size(100, 256, 64, 64): "wide batch, small network",
    Size(50, 32, 128, 512): "short sequences, wide hidden layer",
    Size(100, 64, 128, 256): "a usual layer of a usual model",
    Size(100, 64, 256, 1024): "the largest: nearly all of it matrix products",
}
