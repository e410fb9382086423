"""What the classes of the data sets are called, by label."""

from collections.abc import Sequence

DIGITS = tuple("0123456789")
CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": DIGITS,
    "digits": DIGITS,
    "nmnist": DIGITS,
    "fashion_mnist": (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}


def names_of(dataset: str, count: int, own: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what `count` classes are called: by their own names, or those of the data set.

    A class that neither knows has its number for a name.
    """
    known = tuple(own) or CLASSES.get(dataset, ())
    return (*known[:count], *map(str, range(len(known), count)))
