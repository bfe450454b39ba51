"""`save` and `load`: what comes back is what went in, and any other file is an error that says why."""

from __future__ import annotations

import io
import json
import os
import stat
import warnings
import zipfile
from itertools import product

import numpy as np
import pytest
from fresh import printed, run_python
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import fastxent as fx
from fastxent import _files, losses

X, Y = load_iris(return_X_y=True)
LABELS = {
    "int64": Y,
    "int8": Y.astype(np.int8),
    "uint16": (Y + 7).astype(np.uint16),
    "bool": Y == 1,
    "float64": Y + 0.0,
    "str": np.array(["setosa", "versicolor", "virginica"])[Y],
    "object": np.array(["ä", "β", "中\U0001f600"], object)[Y],
}


def estimators(y=Y, dtype=np.float64):
    data = X.astype(dtype)
    options = {"max_iter": 5, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic = fx.LogisticRegression(C=np.float64(0.5), max_iter=5).fit(data, y)
        network = fx.MLPClassifier((4, 3), **options).fit(data, y)
        scaling = fx.TemperatureScaling(classes=network.classes_).fit(logistic.predict_log_proba(data), y)
    return {"logistic": logistic, "mlp": network, "temperature": scaling}


def same(a, b):
    """Equality to the last bit, type and dtype, of what estimators hold."""
    if type(a) is not type(b):
        return False
    if sparse.issparse(a):
        return a.dtype == b.dtype and (a != b).nnz == 0 and a.shape == b.shape
    if isinstance(a, (np.ndarray, np.generic)):
        if a.dtype.kind == "O":
            return a.dtype == b.dtype and same(a.tolist(), b.tolist())
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(*pair) for pair in zip(a.values(), b.values(), strict=True))
    if isinstance(a, np.random.RandomState):
        return same(a.get_state(), b.get_state())
    if type(a).__name__ == "Outcome":
        return same(vars(a), vars(b))
    return a == b or (a != a and b != b)


def fitted(model):
    return {name: value for name, value in vars(model).items() if _files.is_fitted(name, type(model))}


def assert_same(model, again):
    assert type(again) is type(model)
    for a, b in (
        (model.get_params(deep=False), again.get_params(deep=False)),
        (fitted(model), fitted(again)),
    ):
        assert set(a) == set(b)
        for name in a:
            assert same(a[name], b[name]), name


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", LABELS)
def test_everything_comes_back(labels, dtype, tmp_path):
    """Parameters, attributes, their types and dtypes, and so every prediction, for labels of any kind."""
    for name, model in estimators(LABELS[labels], dtype).items():
        path = tmp_path / f"{name}.npz"
        model.save(path)
        again = fx.load(path)
        assert_same(model, again)
        assert again.classes_.dtype == model.classes_.dtype
        data = X.astype(dtype)
        if name == "temperature":
            data = np.random.default_rng(0).normal(size=(9, len(model.classes_))).astype(dtype)
        probabilities = again.predict_proba(data)
        assert probabilities.dtype == dtype
        np.testing.assert_array_equal(probabilities, model.predict_proba(data))
        np.testing.assert_array_equal(again.predict(data), model.predict(data))


def test_numpy_string_labels(tmp_path):
    """Labels of NumPy's own string type, in an attribute as in a parameter."""
    names = np.array(["no", "yes, a long one that is on the heap", ""], np.dtypes.StringDType())
    model = fx.TemperatureScaling(classes=names)
    model.save(tmp_path / "m.npz")
    again = fx.load(tmp_path / "m.npz").classes
    assert again.dtype == names.dtype
    assert again.tolist() == names.tolist()


PARAMETERS = [
    {"loss": fx.FocalLoss(gamma=1.5, alpha=(1.0, 2.0, 3.0), label_smoothing=0.1)},
    {"loss": 0.3 * fx.SoftmaxCrossEntropy(class_weight=[1, 2, 3]) + fx.Poly1Loss()},
    {"loss": "gce"},
    {"class_weight": {0: 1, 1: 2.5, np.int64(2): np.float32(3)}},
    {"class_weight": "balanced", "random_state": np.random.RandomState(3)},
    {"C": np.inf, "tol": np.float32(1e-3)},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda parameters: "-".join(parameters))
def test_parameters_come_back(parameters, tmp_path):
    model = fx.LogisticRegression(**parameters)
    model.save(tmp_path / "m.npz")
    again = fx.load(tmp_path / "m.npz")
    assert_same(model, again)
    with pytest.raises(NotFittedError):
        again.predict(X)
    again.fit(X, Y)
    np.testing.assert_array_equal(again.coef_, model.fit(X, Y).coef_)


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_comes_back(name, tmp_path):
    loss = losses.resolve(name)
    fx.MLPClassifier(loss=2 * loss).save(tmp_path / "m.npz")
    assert fx.load(tmp_path / "m.npz").loss == 2 * loss


def test_sparse_coefficients_and_feature_names_come_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["ä", "b", "c", "d"])
    model = fx.LogisticRegression(C=0.01, l1_ratio=1).fit(frame, Y).sparsify()
    model.save(tmp_path / "m.npz")
    again = fx.load(tmp_path / "m.npz")
    assert_same(model, again)
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    with pytest.raises(ValueError, match="feature names"):
        again.predict(frame.rename(columns={"b": "e"}))


def test_multilabel_and_soft_labels_come_back(tmp_path):
    indicator = np.stack([Y == 0, Y != 2], axis=1).astype(int)
    soft = np.eye(3)[Y] * 0.9 + 1 / 30
    for y in (indicator, soft):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = fx.MLPClassifier((4,), max_iter=3, random_state=0).fit(X, y)
        model.save(tmp_path / "m.npz")
        again = fx.load(tmp_path / "m.npz")
        assert_same(model, again)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_training_goes_on(tmp_path):
    """A loaded network takes further rows from the weights that it has."""
    network = estimators()["mlp"]
    network.save(tmp_path / "m.npz")
    again = fx.load(tmp_path / "m.npz")
    before = again.loss_
    for _ in range(20):
        again.partial_fit(X, Y)
    assert again.loss_ < before
    model = fx.LogisticRegression(warm_start=True).fit(X, Y)
    model.save(tmp_path / "m.npz")
    assert fx.load(tmp_path / "m.npz").fit(X, Y).n_iter_[0] <= 1


def test_numpy_reads_the_file(tmp_path):
    """An npz archive like any other, whose header is JSON; the same model gives the same bytes."""
    model = estimators()["logistic"]
    for name in ("a.npz", "b"):  # nothing is appended to a name
        model.save(str(tmp_path / name))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["coef_"], model.coef_)
        header = json.loads(archive["header.json"])
    assert (header["format"], header["version"]) == ("fastxent-model", 1)
    assert header["arrays"]["coef_"]["dtype"] == "<f8"
    assert header["written_by"]["numpy"] == np.__version__


def test_no_pickle_is_imported(tmp_path):
    """Saving and loading never touch pickle, whatever NumPy itself has loaded."""
    code = f"""
import sys, pickle
def refuse(*args, **kwargs): raise AssertionError("pickle was used")
import numpy as np, fastxent as fx
model = fx.LogisticRegression(loss=fx.FocalLoss()).fit([[0.0], [1.0]], np.array(["a", "b"], object))
pickle.dumps = pickle.dump = pickle.loads = pickle.load = pickle.Pickler = pickle.Unpickler = refuse
model.save({str(tmp_path / "m.npz")!r})
print(fx.load({str(tmp_path / "m.npz")!r}).predict([[2.0]])[0])
"""
    assert printed(code) == "b"


# -------------------------------------------------------------------------------------------------------- refusals


class Unknown:
    """Anything that is no number, string or array of them."""

    def loss_grad(self):
        pass


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("loss", Unknown()), ("class_weight", {0: Unknown()}), ("random_state", np.array([Unknown()], object))],
)
def test_what_no_file_holds_is_refused(parameter, value, tmp_path):
    path = tmp_path / "m.npz"
    path.write_bytes(b"as it was")
    with pytest.raises(TypeError, match=f"save: {parameter}.* is .*, not Unknown"):
        fx.MLPClassifier(**{parameter: value}).save(path)
    assert path.read_bytes() == b"as it was"
    assert os.listdir(tmp_path) == ["m.npz"]


def test_subclasses_are_refused(tmp_path):
    class Own(fx.LogisticRegression):
        pass

    with pytest.raises(TypeError, match="Own is a class of its own"):
        Own().save(tmp_path / "m.npz")
    assert issubclass(fx.LogisticRegression, BaseEstimator)


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def rewritten(path, change):
    """The file with a changed header or changed arrays, and checksums that agree with them."""
    members = members_of(path)
    header = json.loads(members["header.json"])
    del header["sha256"]
    change(header, members)
    for name in header["arrays"]:
        if f"{name}.npy" in members:
            header["arrays"][name]["sha256"] = _files._digest(members[f"{name}.npy"])
    header["sha256"] = _files._digest(_files._canonical(header))
    members["header.json"] = json.dumps(header).encode()
    return written(path, members)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.npz"
    estimators()["mlp"].save(path)
    return path


def test_truncated_files(saved):
    """Cut off anywhere: an error that says so, and never a model."""
    data = saved.read_bytes()
    for length in {0, 1, 3, 4, 30, 100, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 1}:
        saved.write_bytes(data[:length])
        words = "is cut off or damaged" if length >= 4 else "is no file of fastxent"
        with pytest.raises(ValueError, match=words):
            fx.load(saved)


def test_foreign_files(saved, tmp_path):
    saved.write_text("X,y\n1,2\n")
    with pytest.raises(ValueError, match="is no file of fastxent: expected an npz archive"):
        fx.load(saved)
    np.savez(saved, coef_=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no file of fastxent: the archive has no 'header\.json'"):
        fx.load(saved)
    np.savez_compressed(saved, coef_=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no file of fastxent: its member 'coef_\.npy' is compressed"):
        fx.load(saved)
    written(saved, {"header.json": b'{"format": "other"}'})
    with pytest.raises(ValueError, match="is no file of fastxent: its format is 'other'"):
        fx.load(saved)
    for text in (b"[1, 2]", b"no json", b"[" * 100_000):
        written(saved, {"header.json": text})
        with pytest.raises(ValueError, match="its header is no JSON object"):
            fx.load(saved)
    with pytest.raises(FileNotFoundError):
        fx.load(tmp_path / "nothing.npz")


def test_every_changed_byte_is_found(saved):
    """One bit anywhere: the header's and the arrays' checksums and the archive's own leave no place to hide."""
    data = saved.read_bytes()
    model = fx.load(saved)
    places = np.random.default_rng(0).integers(0, len(data), 300).tolist()
    messages = []
    for place in places:
        saved.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            again = fx.load(saved)
        except ValueError as error:
            messages.append(str(error))
        else:  # an unused field of the archive, such as a date
            assert_same(model, again)
    assert all(message.startswith(repr(str(saved))) for message in messages)
    assert len(messages) > 250


def test_changed_arrays_and_headers(saved):
    members = members_of(saved)
    written(saved, {**members, "coefs_.0.npy": npy(np.zeros((4, 4)))})
    with pytest.raises(ValueError, match=r"was changed or damaged: the checksum of the array 'coefs_\.0'"):
        fx.load(saved)
    written(
        saved,
        {**members, "header.json": members["header.json"].replace(b'"alpha": 0.0001', b'"alpha": 0.0002')},
    )
    with pytest.raises(ValueError, match="was changed or damaged: the checksum of its header"):
        fx.load(saved)
    written(saved, {**members, "more.npy": npy(np.zeros(1))})
    with pytest.raises(
        ValueError, match=r"was changed: its arrays are not those of its header \(more\.npy\)"
    ):
        fx.load(saved)
    del members["coefs_.1.npy"]
    written(saved, members)
    with pytest.raises(ValueError, match=r"its arrays are not those of its header \(coefs_\.1\.npy\)"):
        fx.load(saved)


@pytest.mark.parametrize("entry", [5, [], {}, {"dtype": "<f8", "shape": [4, 4]}])
def test_arrays_that_the_header_does_not_describe(entry, saved):
    members = members_of(saved)
    header = json.loads(members["header.json"])
    del header["sha256"]
    header["arrays"]["coefs_.0"] = entry
    header["sha256"] = _files._digest(_files._canonical(header))
    written(saved, {**members, "header.json": json.dumps(header).encode()})
    with pytest.raises(ValueError, match=r"its header does not describe the array 'coefs_\.0'"):
        fx.load(saved)


def test_newer_versions(saved):
    rewritten(saved, lambda header, members: header.update(version=2))
    with pytest.raises(
        ValueError, match="version 2 of the format, this fastxent reads up to 1: it needs a newer one"
    ):
        fx.load(saved)


def replace_array(name, array):
    def change(header, members):
        members[f"{name}.npy"] = npy(array)
        header["arrays"][name] = {"dtype": array.dtype.str, "shape": list(array.shape)}

    return change


def fitted_value(name, code):
    return lambda header, members: header["fitted"].update({name: code})


def parameter(name, code):
    return lambda header, members: header["params"].update({name: code})


def evil_npy(header, members):
    """An array that claims to be larger than its bytes."""
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }"
    members["coefs_.0.npy"] = (
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(128)
    )
    header["arrays"]["coefs_.0"] = {"dtype": "<f8", "shape": [1000000000000, 4]}


def endless_npy(header, members):
    """An array whose own header is no expression."""
    members["coefs_.0.npy"] = members["coefs_.0.npy"].replace(b"}", b"(")


def sizeless_npy(header, members):
    """Items of no size, of which any number fits into no bytes."""
    text = "{'descr': '|S0', 'fortran_order': False, 'shape': (100000000000000,), }"
    members["coefs_.0.npy"] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    header["arrays"]["coefs_.0"] = {"dtype": "|S0", "shape": [100000000000000]}


def random_state(position):
    words = np.zeros(624, np.uint32)

    def change(header, members):
        replace_array("words", words)(header, members)
        header["params"]["random_state"] = {"random_state": ["MT19937", {"array": "words"}, position, 0, 0.0]}

    return change


def pickled_npy(header, members):
    members["coefs_.0.npy"] = npy(np.array([{}], object))
    header["arrays"]["coefs_.0"] = {"dtype": "|O", "shape": [1]}


TAMPERED = {
    "wrong shape": (
        replace_array("coefs_.0", np.zeros((4, 5))),
        r"coefs_\[0\] is float64 \(4, 5\), expected",
    ),
    "wrong dtype": (replace_array("intercepts_.0", np.zeros(4, int)), r"intercepts_\[0\] is int64 \(4,\)"),
    "huge shape": (evil_npy, "128 bytes are no float64"),
    "no header of an array": (endless_npy, r"array 'coefs_\.0'"),
    "items of no size": (sizeless_npy, r"dtype \|S0 is not allowed"),
    "random state past its end": (random_state(625), "position 625 in a random state"),
    "random state before its start": (random_state(-1), "position -1 in a random state"),
    "pickle in an array": (pickled_npy, "dtype object is not allowed"),
    "a class too many": (replace_array("classes_", np.arange(4)), "n_outputs_ is 3 for 4 classes"),
    "classes in a matrix": (replace_array("classes_", np.zeros((3, 1))), "classes_ is .*, expected a vector"),
    "no weights": (fitted_value("coefs_", []), "n_layers_ is 4 for 0 coefs_"),
    "features": (fitted_value("n_features_in_", 5), "coefs_"),
    "no kind of labels": (
        lambda header, members: header["fitted"].pop("_multilabel"),
        "no attribute '_multilabel'",
    ),
    "another kind of labels": (
        fitted_value("_multilabel", True),
        "n_outputs_ is 3 for 3 labels, out_activation_ is 'softmax'",
    ),
    "an odd kind of labels": (fitted_value("_multilabel", 1), "_multilabel is 1, expected True or False"),
    "one output of three": (fitted_value("n_outputs_", 1), "n_outputs_ is 1 for 3 classes"),
    "an output for each label": (
        fitted_value("out_activation_", "logistic"),
        "out_activation_ is 'logistic'",
    ),
    "half a layer": (fitted_value("n_layers_", 4.0), r"n_layers_ is 4\.0, expected an integer"),
    "a truth for a number": (fitted_value("n_features_in_", True), "n_features_in_ is True, expected an int"),
    "weights in a dict": (fitted_value("coefs_", {"dict": [[0, 1]]}), "coefs_ is dict, expected a list"),
    "a bias of no axis": (replace_array("intercepts_.0", np.zeros(())), r"coefs_\[0\] is float64 \(4, 4\)"),
    "classes in another order": (
        replace_array("classes_", np.array([2, 1, 0])),
        "different labels in their order",
    ),
    "a class twice": (replace_array("classes_", np.array([0, 1, 1])), "expected different labels"),
    "classes that are not numbers": (
        replace_array("classes_", np.full(3, np.nan)),
        "expected different labels",
    ),
    "classes of two kinds": (fitted_value("classes_", {"objects": [1, "a", None]}), "not supported between"),
    "numbers for names": (
        fitted_value("feature_names_in_", {"objects": [1, 2, 3, 4]}),
        "an array of strings",
    ),
    "a list of names": (fitted_value("feature_names_in_", ["a", "b", "c", "d"]), "an array of strings"),
    "too few names": (
        fitted_value("feature_names_in_", {"objects": ["a"]}),
        r"has shape \(1,\) for 4 features",
    ),
    "unknown activation": (
        parameter("activation", "step"),
        "The 'activation' parameter of MLPClassifier must be",
    ),
    "no thread": (parameter("num_threads", 0), "The 'num_threads' parameter of MLPClassifier must be"),
    "text for weights": (fitted_value("coefs_", ["a", "b", "c"]), r"coefs_\[0\] is str"),
    "method overwritten": (fitted_value("predict", 1), "no name of a fitted attribute: 'predict'"),
    "private attribute": (fitted_value("__class__", 1), "no name of a fitted attribute: '__class__'"),
    "unknown parameter": (parameter("depth", 1), "MLPClassifier has no parameter 'depth'"),
    "unknown kind": (parameter("alpha", {"call": ["os.system", "ls"]}), "unknown kind 'call'"),
    "unknown class": (parameter("loss", {"dataclass": ["Popen", {"dict": []}]}), "Popen"),
    "wrong option": (parameter("loss", {"dataclass": ["FocalLoss", {"dict": [["gamma", -1.0]]}]}), "gamma"),
    "missing array": (parameter("alpha", {"array": "nothing"}), "nothing"),
    "other estimator": (lambda header, members: header.update({"class": "Popen"}), "it holds a 'Popen'"),
    "no parameters": (lambda header, members: header.pop("params"), "its header lacks 'params'"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_with_agreeing_checksums(case, saved):
    """Whoever can write a file can write its checksums: even so nothing comes out but a valid model of this package."""
    change, words = TAMPERED[case]
    rewritten(saved, change)
    with pytest.raises(ValueError, match=rf"(?s)model\.npz' is not valid: .*{words}"):
        fx.load(saved)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "coef_",
            np.zeros((3, 5)),
            r"coef_ is float64 \(3, 5\), expected float32 or float64 of shape \(3, 4\)",
        ),
        ("intercept_", np.zeros(2), r"intercept_ is float64 \(2,\)"),
        ("classes_", np.array([1.0]), "expected a vector of 2 or more labels"),
        ("temperature_", None, "temperature_ is -1.0, expected a positive number"),
    ],
)
def test_other_estimators_are_checked_too(name, array, words, tmp_path):
    path = tmp_path / "model.npz"
    kind = "temperature" if array is None else "logistic"
    estimators()[kind].save(path)
    rewritten(path, fitted_value(name, -1.0) if array is None else replace_array(name, array))
    with pytest.raises(ValueError, match=words):
        fx.load(path)


CODES = [
    *(
        None,
        True,
        -1,
        1,
        7,
        10**40,
        0.5,
        {"float": "nan"},
        {"float": "inf"},
        "x",
        [],
        [1, 2, 3],
        [[]],
        ["a", "b"],
    ),
    *(
        {"tuple": [1]},
        {"dict": [["a", 1]]},
        {"dataclass": ["FocalLoss", {"dict": []}]},
        {"objects": ["a", "b"]},
    ),
    *({"objects": [1, "a", None]}, {"strings": ["a", "b"]}, {"array": "matrix"}, {"array": "empty"}),
    *({"scalar": "number"}, {"array": "complex"}, {"array": "dates"}, {"array": "truths"}),
    {"csr_array": [{"array": "line"}, {"array": "order"}, {"array": "ends"}, [1, 3]]},
]
ARRAYS = {
    "matrix": np.ones((2, 2)),
    "empty": np.zeros(0),
    "number": np.array(3.0),
    "complex": np.ones(3, complex),
    "dates": np.zeros(3, "M8[D]"),
    "truths": np.array([True, False]),
    "line": np.ones(3),
    "order": np.arange(3),
    "ends": np.array([0, 3]),
}


def forgeries(header):
    """Every fitted attribute, its parts too where it is a list, left out or replaced; parameters by fewer codes."""
    for name in header["params"]:
        yield from (("params", name, None, code) for code in (..., None, "x", 10**40, {"array": "matrix"}))
    for name, code in header["fitted"].items():
        for at in (None, *range(len(code) if isinstance(code, list) else 0)):
            yield from (("fitted", name, at, code) for code in (..., *CODES))


@pytest.mark.parametrize(
    "kind",
    [
        "logistic",
        "temperature",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sparse", "mlp", "labels")),
    ],
)
def test_every_forged_attribute_is_refused_or_harmless(kind, tmp_path):
    """What `load` lets through predicts; nothing but a ValueError comes from `load`."""
    model = estimators().get(kind)
    if kind == "sparse":
        model = estimators(Y > 0)["logistic"].sparsify()
    elif kind == "labels":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = fx.MLPClassifier((3,), max_iter=2, random_state=0).fit(X, np.eye(3, dtype=int)[Y])
    path, shown = tmp_path / "model.npz", X[:5, : model.n_features_in_]
    model.save(path)
    members = members_of(path)
    jobs = list(forgeries(json.loads(members["header.json"])))
    refused = 0
    for part, name, at, code in jobs:

        def change(header, members, part=part, name=name, at=at, code=code):
            parent, key = (header[part], name) if at is None else (header[part][name], at)
            if code is ...:
                del parent[key]
            else:
                parent[key] = code
            for array, values in ARRAYS.items():
                if array in str(code):
                    replace_array(array, values)(header, members)

        written(path, members)
        rewritten(path, change)
        try:
            again = fx.load(path)
        except ValueError:
            refused += 1
            continue
        for method in ("predict", "predict_proba", "predict_log_proba", "decision_function", "transform"):
            if hasattr(model, method):
                assert len(getattr(again, method)(shown)) == len(shown), (part, name, at, code)
    assert refused >= 0.3 * len(jobs)


def test_parameters_that_fit_refuses_are_not_saved(tmp_path):
    """`load` would refuse them; before a fit they are nobody's business but `fit`'s."""
    model = estimators()["logistic"].set_params(C=-1.0)
    with pytest.raises(ValueError, match="The 'C' parameter of LogisticRegression must be"):
        model.save(tmp_path / "model.npz")
    assert not os.listdir(tmp_path)
    fx.LogisticRegression(C=-1.0).save(tmp_path / "model.npz")
    assert fx.load(tmp_path / "model.npz").C == -1


# --------------------------------------------------------------------------------------------------- atomic writes


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fx.LogisticRegression().save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_killed_while_writing(saved):
    """A process that dies between the bytes and the move leaves the old file whole."""
    code = f"""
import os
from fastxent import _files
import fastxent as fx
_files.os.replace = lambda *paths: os._exit(9)
fx.LogisticRegression().save({str(saved)!r})
"""
    before = saved.read_bytes()
    assert run_python(code).returncode == 9
    assert saved.read_bytes() == before
    assert isinstance(fx.load(saved), fx.MLPClassifier)


@pytest.mark.skipif(os.name != "posix", reason="links and modes are POSIX's")
def test_links_stay_links_and_modes_follow_the_mask(saved, tmp_path):
    link = tmp_path / "latest.npz"
    link.symlink_to(saved)
    fx.LogisticRegression().save(link)
    assert link.is_symlink()
    assert isinstance(fx.load(saved), fx.LogisticRegression)
    mask = os.umask(0o027)
    try:
        fx.LogisticRegression().save(tmp_path / "new.npz")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.npz").stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError):
        fx.LogisticRegression().save(tmp_path / "no folder" / "m.npz")


def test_concurrent_saves_leave_one_of_them(tmp_path):
    """Several writers of one name: what is there is always one whole file."""
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "m.npz"
    models = [fx.LogisticRegression(C=float(c)) for c in range(1, 9)]
    with ThreadPoolExecutor(4) as team:
        jobs = [team.submit(model.save, path) for model, _ in product(models, range(3))]
        for job in jobs:
            job.result()
    assert fx.load(path).C in range(1, 9)
    assert os.listdir(tmp_path) == ["m.npz"]


def test_training_goes_on_after_load(tmp_path):
    """From the loaded weights; what training alone needs (a momentum) starts anew."""
    X, y = load_iris(return_X_y=True)
    model = fx.MLPClassifier((5,), dropout=0.1, random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    model.save(tmp_path / "model.npz")
    again = fx.load(tmp_path / "model.npz").partial_fit(X, y)
    moved = np.abs(again.coefs_[0] - model.coefs_[0])
    assert 0 < moved.max() < 0.01  # one step of Adam


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_stream_goes_on_after_load(tmp_path, form):
    """LogisticRegression.partial_fit remembers earlier rows in the file: the same bits as without it."""
    X, y = load_iris(return_X_y=True)
    X, path = X if form == "dense" else sparse.csr_array(X), tmp_path / "model.npz"
    model = fx.LogisticRegression().partial_fit(X[::2], y[::2], classes=[0, 1, 2])
    model.save(path)
    again, more = fx.load(path), (X[1::2], y[1::2])
    assert np.array_equal(again.partial_fit(*more).coef_, model.partial_fit(*more).coef_)
    (center, slope, curvature), mass = model._past
    for wrong in (
        ((center[1:], slope, curvature), mass),
        ((center, slope, curvature[:-1]), mass),
        ((center, slope.astype(np.float32), curvature), mass),
        ((center, slope, curvature), -1.0),
        ((center, slope, None), mass),
        (3.0,),
        "past",
    ):
        model._past = wrong
        model.save(path)
        with pytest.raises(ValueError, match="is not valid"):
            fx.load(path)
