"""Multi-layer perceptron classifier on the package's own loss kernels.

`_network` holds all weights in one flat buffer and runs forward and backward over a block of rows; `_objectives`
turn the logits into their gradient; `_optimizers` update the flat buffer; `_training` makes a mini-batch step of
the four, readable in NumPy, or has `fastxent._step` make it in compiled code; `_progress` shows how far a fit is;
`_classifier` owns labels, schedules and stopping.

The objective of a batch with row weights v and D = sum v is  (sum_i v_i L_i + alpha/2 ||W||^2) / D,
scikit-learn's.
"""

from ._classifier import MLPClassifier

__all__ = ["MLPClassifier"]
