"""Results that must not move unseen: the stored corpus, and numbers that other libraries' tests hold.

``make numbers`` writes the corpus anew; its difference then shows which results have moved, and by how much.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fresh import printed
from numpy.testing import assert_allclose

import fastxent as fx

ULPS = 16  # two results that are each within 8 of the truth
# A result is a difference of terms of about this size where it is not held to its own ulp.
TERMS = 1.0


@pytest.fixture(scope="module")
def stored():
    corpus = pytest.importorskip("corpus", reason="the extension is not built")
    return json.loads(corpus.PATH.read_text(encoding="utf-8"))


def distances(stored, found, exact):
    """Distance of each kept number from the stored one, in ulp of itself, or of the largest of its row and TERMS."""
    eps = {name: np.finfo(name.rpartition(", ")[2]).eps for name in stored}
    worst = {}
    for name, case in stored.items():
        worst[name] = 0.0
        for old, new in zip(case["numbers"], found[name]["numbers"], strict=True):
            for a, b in zip(old, new, strict=True):
                a, b = (np.array([float.fromhex(x) for x in row]) for row in (a, b))
                scale = np.abs(a) if name in exact else np.maximum(np.abs(a).max(), TERMS)
                off = np.abs(a - b) / np.maximum(scale * eps[name], 2.0**-1074)
                worst[name] = max(worst[name], float(off.max()))
    return worst


CHECK = """
import json, sys
import corpus
document = corpus.written()
exact = [name for d in ("float32", "float64") for name, (_, exact) in corpus.corpus(d).items() if exact]
json.dump({**document, "exact": exact}, sys.stdout)
"""


@pytest.mark.compiled
@pytest.mark.parametrize("isa", fx._backend.describe()["cpu"].get("instruction_sets", []))
def test_every_instruction_set_gives_the_stored_numbers(isa, stored):
    """Within the bound on each; on the one that wrote them, built by the compiler that did, to the last bit."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = json.loads(printed(CHECK, timeout=120, FASTXENT_ISA=isa, PYTHONPATH=path))
    assert found["instruction_set"] == isa
    assert found["cases"].keys() == stored["cases"].keys()
    off = distances(stored["cases"], found["cases"], set(found["exact"]))
    assert {name: ulps for name, ulps in off.items() if not ulps <= ULPS} == {}
    if (isa, found["compiler"]) == (stored["instruction_set"], stored["compiler"]):
        moved = [
            name
            for name, case in stored["cases"].items()
            if not name.startswith("linear") and case["bits"] != found["cases"][name]["bits"]
        ]
        assert moved == [], "if this is on purpose: make numbers"


@pytest.mark.compiled
def test_a_moved_number_is_seen(stored):
    """One number off by 17 ulp is found, and a bit of a number that is not kept changes the checksum."""
    import corpus

    name = "labels, 10, float32"
    call, _ = corpus.corpus("float32")[name]
    losses, grad = call()
    grad = grad.copy()
    grad[0, 0] *= np.float32(1 + 17 * 2.0**-23)
    assert distances({name: stored["cases"][name]}, {name: corpus.told((losses, grad))}, {name})[name] >= 16
    losses, grad = call()
    grad = grad.copy()
    grad[-1, 1] = np.nextafter(grad[-1, 1], np.float32(1))
    assert corpus.told((losses, grad))["bits"] != corpus.told(call())["bits"]


def test_inputs_come_from_integers_alone(stored):
    """The first numbers of the generator, as Python's integers give them; each is exact in float32."""
    import corpus

    mask, expected = 2**64 - 1, []
    for i in range(1, 7):
        x = (i * 0x9E3779B97F4A7C15 + (5 << 40)) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        expected.append((x ^ x >> 31) >> 33)
    assert corpus.integers(2, 3, 5, 2**31).ravel().tolist() == expected


# Numbers from the tests of other libraries -----------------------------------------------------------------------
#
# From scipy/special/tests/test_log_softmax.py (SciPy, BSD-3-Clause): logits and their log-softmax.
LOG_SOFTMAX = [
    ([1000, 1], [0, -999]),
    ([0, 1, 2, 3], [-3.4401896985611953, -2.4401896985611953, -1.4401896985611953, -0.44018969856119533]),
    (
        [100, 101, 102, 103],
        [-3.4401896985611953, -2.4401896985611953, -1.4401896985611953, -0.44018969856119533],
    ),
]
# From scipy/special/tests/test_logit.py (SciPy, BSD-3-Clause): x and log(expit(x)).
LOG_EXPIT = [
    (-32, -32.000000000000014), (-20, -20.000000002061153), (-10, -10.000045398899218), (-3, -3.048587351573742),
    (-1, -1.3132616875182228), (-0.1, -0.7443966600735709), (-1e-9, -0.6931471810599453), (0, -0.6931471805599453),
    (1e-9, -0.6931471800599454), (0.1, -0.6443966600735709), (1, -0.3132616875182228), (10, -4.539889921686465e-05),
    (100, -3.720075976020836e-44), (500, -7.124576406741286e-218), (710, -4.47628622567513e-309),
    (-750.0, -750.0), (-1000.0, -1000.0), (750.0, 0.0), (1000.0, 0.0), (10000.0, 0.0),
]  # fmt: skip
# From sklearn/_loss/tests/test_loss.py (scikit-learn, BSD-3-Clause): target, logit, loss, gradient, curvature of
# the binomial loss. That test allows 1e-16 of absolute error, and its numbers for 232.8 make use of it: they are 0
# and 1.4287342391028437e-101, where exp(-232.8) is TINY.
TINY = 7.874892118601447e-102  # mpmath: exp(-mpf(232.8))
BINOMIAL = [
    (0.0, -1e20, 0, 0, 0), (1.0, -1e20, 1e20, -1, 0), (0.0, -1e3, 0, 0, 0), (1.0, -1e3, 1e3, -1, 0),
    (1.0, -37.5, 37.5, -1, 0), (1.0, -37.0, 37, 1e-16 - 1, 8.533047625744065e-17),
    (0.0, -37.0, 8.533047625744065e-17, 8.533047625744065e-17, 8.533047625744065e-17),
    (1.0, -36.9, 36.9, 1e-16 - 1, 9.430476078526806e-17),
    (0.0, -36.9, 9.430476078526806e-17, 9.430476078526806e-17, 9.430476078526806e-17),
    (0.0, 37.0, 37, 1 - 1e-16, 8.533047625744065e-17),
    (1.0, 37.0, 8.533047625744066e-17, -8.533047625744066e-17, 8.533047625744066e-17),
    (0.0, 37.5, 37.5, 1, 5.175555005801868e-17), (0.0, 232.8, 232.8, 1, TINY),
    (1.0, 1e20, 0, 0, 0), (0.0, 1e20, 1e20, 1, 0), (1.0, 232.8, TINY, -TINY, TINY),
    (1.0, 1e3, 0, 0, 0), (0.0, 1e3, 1e3, 1, 0),
]  # fmt: skip
# From sklearn/metrics/tests/test_classification.py (scikit-learn, BSD-3-Clause): labels, probabilities, log loss.
LOG_LOSS = [
    ([1, 0, 2], [[0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.6, 0.1, 0.3]], 0.6904911),
    ([0, 1, 1, 0], [[0.3, 0.7], [0.6, 0.4], [0.4, 0.6], [0.7, 0.3]], 0.7469410),
]
# From scipy/special/tests/test_logsumexp.py (SciPy, BSD-3-Clause): logits and their softmax, the most probable last.
SOFTMAX = [
    ([0, 1, 2, 3], [0.03205860328008499, 0.08714431874203256, 0.23688281808991013, 0.6439142598879722]),
    (
        [100, 101, 102, 103],
        [0.03205860328008499, 0.08714431874203256, 0.23688281808991013, 0.6439142598879722],
    ),
    (
        [-25, 0, 25, 50],
        [2.678636961770877e-33, 1.9287498479371314e-22, 1.3887943864771144e-11, 0.999999999986112],
    ),
    ([1, 325, 749, 750], [0.0, 1.9444526359919372e-185, 0.2689414213699951, 0.7310585786300048]),
]
# From scipy/special/tests/test_basic.py (SciPy, BSD-3-Clause): x, y and x log(x / y).
REL_ENTR = [
    (0.9456657713430001, 0.9456657713430094, -9.325873406851269e-15),
    (0.48066098564791515, 0.48066098564794774, -3.258504577274724e-14),
    (0.786048657854401, 0.7860486578542367, 1.6431300764454033e-13),
    (4.0, 2.22e-308, 2839.139983229607),
]
# From scipy/stats/tests/test_entropy.py (SciPy, BSD-3-Clause): numbers, others or None, entropy or divergence from them
# once both are scaled to sum to 1.
ENTROPY = [
    ([0, 1, 2], None, 0.63651416829481278),
    ([0.3, 0.5], None, 0.66156324),
    ([0.1, 0.6, 0.3], [0.2, 0.3, 0.5], 0.1933259),
    ([0.2, 0.3, 0.5], [0.1, 0.6, 0.3], 0.18609809),
    ([0.0, 0.6, 0.3], [0.0, 0.3, 0.5], 0.17403988),
    ([0.1, 0.6, 0.3], [0.0, 0.3, 0.5], np.inf),
    ([0.1, 0.2], [0.2, 0.1], 0.23104906),
    ([0.3, 0.5], [0.5, 0.3], 0.12770641),
]
# From scipy/spatial/tests/test_distance.py (SciPy, BSD-3-Clause): numbers, others, root of their Jensen-Shannon
# divergence once both are scaled to sum to 1.
JENSEN_SHANNON = [
    ([1, 0], [0.5, 0.5], 0.46450140402245893),
    ([1, 2], [0.5, 1.5], 0.0649045),
    ([1, 2, 3, 4], [13, 14, 15, 16], 0.1402339),
    ([5, 6, 7, 8], [17, 18, 19, 20], 0.0399106),
    ([9, 10, 11, 12], [21, 22, 23, 24], 0.0201815),
    ([1, 5, 9], [13, 17, 21], 0.1954288),
]
# From test/cpp/api/functional.cpp (PyTorch, BSD-3-Clause): logits, targets, label smoothing, mean cross-entropy.
CROSS_ENTROPY = [
    ([[3.0, 3.0], [2.0, 2.0]], [0, 1], 0.0, 0.6931),
    ([[3.0, 1.0], [1.0, 2.0]], [0, 1], 0.15, 0.3326),
    ([[3.0, 1.0], [1.0, 2.0]], [[0.8, 0.2], [0.1, 0.9]], 0.2, 0.5701),
]


@pytest.mark.parametrize(("logits", "expected"), LOG_SOFTMAX)
def test_scipys_log_softmax(backend, logits, expected):
    z = np.tile(np.array(logits, float), (len(logits), 1))
    losses = fx.softmax_cross_entropy(z, np.arange(len(logits)), reduction="none", backend=backend)
    assert_allclose(losses, -np.array(expected, float), rtol=1e-13)


@pytest.mark.parametrize(("x", "expected"), LOG_EXPIT)
def test_scipys_log_expit(backend, x, expected):
    assert_allclose(fx.sigmoid_cross_entropy(float(x), 1, backend=backend), -expected, rtol=1e-15)


@pytest.mark.parametrize(("y", "z", "loss", "grad", "hess"), BINOMIAL)
def test_scikit_learns_binomial_loss(backend, y, z, loss, grad, hess):
    binary = fx.SigmoidCrossEntropy()
    found = (*binary.loss_grad([z], [y], backend=backend), binary.grad_hess([z], [y], backend=backend)[1])
    for value, expected in zip(found, (loss, grad, hess), strict=True):
        assert_allclose(value, expected, rtol=4e-16, atol=1e-16 if expected in (0, 1, -1) else 0)


@pytest.mark.parametrize(("labels", "probabilities", "expected"), LOG_LOSS)
def test_scikit_learns_log_loss(backend, labels, probabilities, expected):
    assert_allclose(
        fx.softmax_cross_entropy(np.log(probabilities), labels, backend=backend), expected, rtol=1e-7
    )


@pytest.mark.parametrize(("logits", "expected"), SOFTMAX)
def test_scipys_softmax(backend, logits, expected):
    """The gradient is the softmax where the label is another class."""
    for label in (0, 3):
        grad = fx.softmax_cross_entropy_with_grad(np.array(logits, float), label, backend=backend)[1]
        others = np.arange(4) != label
        assert_allclose(grad[others], np.array(expected)[others], rtol=1e-13)
    assert_allclose(grad[3], expected[3] - 1, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(("x", "y", "expected"), REL_ENTR)
def test_scipys_rel_entr(x, y, expected):
    assert_allclose(fx.information.kl_divergence([x], [y]), expected, rtol=1e-13)


@pytest.mark.parametrize(("p", "q", "expected"), ENTROPY)
def test_scipys_entropy(p, q, expected):
    p, q = (None if each is None else np.array(each) / np.sum(each) for each in (p, q))
    found = fx.information.entropy(p) if q is None else fx.information.kl_divergence(p, q)
    assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize(("p", "q", "expected"), JENSEN_SHANNON)
def test_scipys_jensen_shannon(backend, p, q, expected):
    """Of distributions, and as a loss of one's logits against the other."""
    p, q = (np.array(each, float) / np.sum(each) for each in (p, q))
    assert_allclose(np.sqrt(fx.information.js_divergence(p, q)), expected, atol=6e-8)
    loss = fx.JensenShannonLoss().loss(np.log(q), p, backend=backend)
    assert_allclose(np.sqrt(loss), expected, atol=6e-8)


@pytest.mark.parametrize(("logits", "targets", "label_smoothing", "expected"), CROSS_ENTROPY)
def test_pytorchs_cross_entropy(backend, dtype, logits, targets, label_smoothing, expected):
    z = np.array(logits, dtype)
    loss = fx.softmax_cross_entropy(z, targets, label_smoothing=label_smoothing, backend=backend)
    assert_allclose(loss, expected, atol=6e-5)
