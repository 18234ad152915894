"""Gradient descent and its relatives on the lecture's quadratic form."""

from dlkit.lectures import Lab

TITLE = "Gradient descent and its relatives"
RUSSIAN = "Градиентный спуск"
WHERE = "Gushchin, lecture 3"
FORMULA = "w <- w - eta grad L(w)"


def experiment(lab: Lab) -> None:
    """..."""
    with lab.figure("paths", "A path.") as axes:
        axes[0, 0].plot([0, 1], [1, 0])
    lab.fact("a claim", "0", True)
