"""The fuzzer's corpus, replayed without the fuzzer: what it found once, and a case of every kind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
CORPUS = sorted((FUZZ / "corpus").glob("*/*"))

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="module")
def cases():
    sys.path.insert(0, str(FUZZ))
    try:
        return importlib.import_module("cases")
    finally:
        sys.path.remove(str(FUZZ))


def test_every_target_has_a_corpus(cases):
    assert {path.parent.name for path in CORPUS} == set(cases.TARGETS)
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


@pytest.mark.parametrize("target", sorted({path.parent.name for path in CORPUS}))
def test_replay(cases, target):
    """Twice, with the same bits; some cases of every target get an answer, and not an exception."""
    answered = 0
    for path in CORPUS:
        if path.parent.name == target:
            data = path.read_bytes()
            digest, some = cases.run(target, data)
            assert cases.run(target, data)[0] == digest, path.name
            answered += some
    assert answered


def test_a_wrong_number_is_seen(cases):
    """The judge judges: another answer, another exception, a byte beside an array."""
    call = cases.fx.softmax_cross_entropy
    case = cases.Case(b"")
    with pytest.raises(AssertionError, match="is not"):
        case.twice(lambda backend: call([[0.0, 1.0]], [0], backend=backend) + (backend == "cpu") * 1e-6)
    with pytest.raises(AssertionError, match="is not"):
        case.twice(lambda backend: call([[0.0, 1.0]], [2 if backend == "cpu" else 0], backend=backend))
    place = cases.Place(cases.np.zeros((2, 3)), [1, 0], [1, 2], [1, -1], 8)
    place.check()
    place.array[0, 0] = 1
    place.check(written=True)
    with pytest.raises(AssertionError, match="changed"):
        place.check()
    place.buffer[3] = 0
    with pytest.raises(AssertionError, match="changed"):
        place.check(written=True)
