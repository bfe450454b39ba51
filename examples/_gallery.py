"""What the examples share: MNIST, and whether to run at the small setting of the tests."""

import os
from pathlib import Path

import numpy as np

# FASTXENT_EXAMPLES=small: fewer rows, fewer epochs, seconds in all. The text of the examples tells of full runs.
SMALL = os.environ.get("FASTXENT_EXAMPLES") == "small"


def folder():
    """Folder of the data sets: the variable FASTXENT_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("FASTXENT_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def mnist(digits=range(10)):
    """MNIST's images of the digits asked for: X_train, y_train, X_test, y_test.

    Rows of 784 pixels in [0, 1], float32; labels are the digits. At the small setting 1000 images and 500.
    """
    path = folder() / "mnist.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: this example trains on MNIST. Get the file from "
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz "
            "and set FASTXENT_DATA to its folder"
        )
    parts = []
    with np.load(path) as data:
        for part, most in (("train", 1000), ("test", 500)):
            y = data[f"y_{part}"].astype(np.int64)
            keep = np.flatnonzero(np.isin(y, list(digits)))[: most if SMALL else None]
            parts += [data[f"x_{part}"][keep].reshape(-1, 784) / np.float32(255), y[keep]]
    return parts
