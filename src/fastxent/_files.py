"""Estimators as files: an npz archive with a JSON header, no pickle anywhere.

A file is an uncompressed zip archive as `numpy.savez` writes it: the member ``header.json`` and one ``.npy`` member per
array, so that `numpy.load` and any other reader of npz can open it. The header holds everything but the arrays:

    {"format": "fastxent-model", "version": 1, "class": ..., "written_by": {...}, "params": {...}, "fitted": {...},
     "arrays": {member: {"dtype", "shape", "sha256"}}, "sha256": of the header without this entry}

`encode` turns values into JSON: numbers, strings, None and lists are themselves, anything else is an object with one
key, which says what it is. Only what is named here can come out of a file, whatever it says: reading one constructs no
object of another type and runs no code of its own. The checksums find accidents, not people: whoever can write a file
can write its checksums as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import secrets
import struct
import tokenize
import zipfile
from contextlib import suppress

import numpy as np
from scipy import sparse

from . import _backend, _checks, losses, solvers

__all__ = ["SaveMixin", "read", "write"]

FORMAT, VERSION, HEADER = "fastxent-model", 1, "header.json"
# Dataclasses by name: losses are options, the solver's outcome an attribute of a fitted model.
_DATACLASSES = {
    name: value
    for name, value in {**vars(losses), "Outcome": solvers.Outcome}.items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}
_KINDS = "biufcSUmM"  # dtypes whose arrays need no pickle
_WRITERS = ("numpy", "scipy", "scikit-learn")


class SaveMixin:
    """``save`` of an estimator, for the classes that `fastxent.load` knows."""

    _saved = ()  # private attributes that a file keeps: what predictions need, or going on

    def save(self, path):
        """Write parameters and fitted attributes to a file that `fastxent.load` reads, without pickle.

        The file appears whole or not at all: it is written beside `path` and moved there. What is not kept: callbacks,
        metadata requests, and an optimizer's momentum. What `LogisticRegression.partial_fit` knows of earlier rows is.

        Parameters
        ----------
        path : str or path-like
            Used as it is, also without the suffix ``.npz``. A file of that name is replaced.

        Raises
        ------
        TypeError
            A parameter or attribute that JSON and arrays cannot hold, such as a loss of your own; a subclass.
        ValueError
            A parameter that `fit` would refuse, set after it: `fastxent.load` refuses such a file.
        OSError
            The file cannot be written.
        """
        if SaveMixin not in type(self).__bases__:
            raise TypeError(f"save: {type(self).__name__} is a class of its own, which a file cannot rebuild")
        fitted = {name: value for name, value in vars(self).items() if is_fitted(name, type(self))}
        if fitted:
            check_parameters(self)
        write(path, type(self).__name__, self.get_params(deep=False), fitted)


def check_parameters(model):
    """Refuse parameters of a fitted model that its `fit` refuses: predictions and `partial_fit` read some unchecked."""
    if hasattr(model, "_parameter_constraints"):
        model._validate_params()


def is_fitted(name, kind):
    """Whether it names a fitted attribute of the class that belongs into a file; public ones end in an underscore."""
    public = name.isidentifier() and name.endswith("_") and not name.startswith("_")
    return name in kind._saved or (public and not hasattr(kind, name))


# --------------------------------------------------------------------------------------------------------------- values


def encode(value, name, arrays):
    """Value as JSON; its arrays go into the dictionary `arrays`, under names that begin with `name`.

    Raises
    ------
    TypeError
        A type that no file holds.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is list:
        return [encode(each, f"{name}.{at}", arrays) for at, each in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": encode(list(value), name, arrays)}
    if type(value) is dict:
        return {"dict": encode([list(item) for item in value.items()], name, arrays)}
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        arrays[name] = np.asarray(value)
        return {"scalar": name}
    if type(value) is np.ndarray and value.dtype.kind in _KINDS:
        arrays[name] = value
        return {"array": name}
    if type(value) is np.ndarray and value.dtype.kind in "OT" and value.ndim == 1:
        return {"objects" if value.dtype.kind == "O" else "strings": encode(value.tolist(), name, arrays)}
    if sparse.issparse(value):
        csr = sparse.csr_array(value)
        kind = "csr_array" if isinstance(value, sparse.sparray) else "csr_matrix"
        return {kind: encode([csr.data, csr.indices, csr.indptr, list(map(int, csr.shape))], name, arrays)}
    if type(value) is np.random.RandomState:
        return {"random_state": encode(list(value.get_state()), name, arrays)}
    if _DATACLASSES.get(type(value).__name__) is type(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"dataclass": [type(value).__name__, encode(fields, name, arrays)]}
    raise TypeError(
        f"save: {name} is {value!r}; a file holds numbers, strings, arrays of them, lists, tuples, dicts, "
        f"RandomState and the package's own losses, not {type(value).__name__}"
    )


def decode(code, arrays):
    """Value of what `encode` made; the error of a code that is none of its answers is a ValueError or TypeError."""
    if code is None or type(code) in (bool, int, float, str):
        return code
    if type(code) is list:
        return [decode(each, arrays) for each in code]
    ((kind, inner),) = code.items()
    if kind in ("array", "scalar"):
        return arrays[inner] if kind == "array" else arrays[inner][()]
    if kind == "float":
        return float(inner)
    if kind == "dataclass":
        name, fields = inner
        return _DATACLASSES[name](**decode(fields, arrays))
    inner = decode(inner, arrays)
    if kind == "tuple":
        return tuple(inner)
    if kind == "dict":
        return dict(inner)
    if kind == "strings":
        return np.array(inner, np.dtypes.StringDType())
    if kind == "objects":
        array = np.empty(len(inner), object)
        array[:] = inner
        return array
    if kind in ("csr_array", "csr_matrix"):
        *parts, shape = inner
        matrix = getattr(sparse, kind)(tuple(parts), shape=tuple(shape))
        matrix.check_format(full_check=True)
        return matrix
    if kind == "random_state":
        _, _, position, *_ = inner
        if (
            type(position) is not int or not 0 <= position <= 624
        ):  # NumPy would read beyond the state's 624 words
            raise ValueError(f"position {position!r} in a random state")
        state = np.random.RandomState()
        state.set_state(tuple(inner))
        return state
    raise ValueError(f"unknown kind {kind!r}")


# ---------------------------------------------------------------------------------------------------------------- files


def write(path, kind, params, fitted):
    """Write the parameters and fitted attributes of a class to a file, or leave what is there untouched."""
    arrays, about = {}, _backend.describe()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "class": kind,
        "written_by": {"fastxent": about["fastxent"], **{name: about["versions"][name] for name in _WRITERS}},
        "params": {name: encode(value, name, arrays) for name, value in params.items()},
        "fitted": {name: encode(value, name, arrays) for name, value in fitted.items()},
    }
    members = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    header["arrays"] = {
        name: {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "sha256": _digest(members[f"{name}.npy"]),
        }
        for name, array in arrays.items()
    }
    header["sha256"] = _digest(_canonical(header))
    members = {HEADER: json.dumps(header, indent=1).encode(), **members}
    path = os.path.realpath(_checks.path(path))  # a link stays one
    beside = f"{path}.{secrets.token_hex(6)}.tmp"
    try:
        with open(beside, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, data in members.items():
                    # ZipInfo's default date: the same model gives the same bytes
                    archive.writestr(zipfile.ZipInfo(name), data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        if isinstance(error, OSError) and error.filename in (
            None,
            beside,
        ):  # the user knows no temporary file
            raise type(error)(error.errno, error.strerror, path) from None
        raise
    _sync_folder(os.path.dirname(path))


def read(path):
    """Class name, parameters and fitted attributes of a file.

    Raises
    ------
    ValueError
        The file is no archive, cut off, none of this package, of a newer version, or not as it was written.
    OSError
        It cannot be read.
    """
    path = _checks.path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
    except (zipfile.BadZipFile, RuntimeError, EOFError, UnicodeError, struct.error) as error:
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            raise ValueError(f"{path!r} is cut off or damaged: {error}") from None
        raise ValueError(f"{path!r} is no file of fastxent: expected an npz archive ({error})") from None
    header = _header(members.pop(HEADER, None), path)
    listed = header["arrays"]
    for name, entry in listed.items():
        if type(entry) is not dict or not {"dtype", "shape", "sha256"} <= set(entry):
            raise ValueError(f"{path!r} is not valid: its header does not describe the array {name!r}")
    if set(members) != {f"{name}.npy" for name in listed}:
        odd = sorted(set(members) ^ {f"{name}.npy" for name in listed})
        raise ValueError(f"{path!r} was changed: its arrays are not those of its header ({', '.join(odd)})")
    arrays = {}
    for name, entry in listed.items():
        data = members[f"{name}.npy"]
        if _digest(data) != entry["sha256"]:
            raise ValueError(
                f"{path!r} was changed or damaged: the checksum of the array {name!r} is another"
            )
        arrays[name] = _array(data, name, entry, path)
    try:
        params = {name: decode(code, arrays) for name, code in header["params"].items()}
        fitted = {name: decode(code, arrays) for name, code in header["fitted"].items()}
        return header["class"], params, fitted
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path!r} is not valid: {error}") from error


def _members(archive, path):
    """Bytes of every member. None is compressed, so that no small file becomes a large one."""
    members = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{path!r} is no file of fastxent: its member {info.filename!r} is compressed")
        if info.filename in members:
            raise ValueError(f"{path!r} was changed: it has two members {info.filename!r}")
        members[info.filename] = archive.read(info)
    return members


def _header(data, path):
    if data is None:
        raise ValueError(f"{path!r} is no file of fastxent: the archive has no {HEADER!r}")
    try:
        header = json.loads(data)
        known = header.get("format") == FORMAT
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path!r} was changed or damaged: its header is no JSON object") from None
    if not known:
        raise ValueError(
            f"{path!r} is no file of fastxent: its format is {header.get('format')!r}, not {FORMAT!r}"
        )
    version = header.get("version")
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"{path!r} has version {version!r} of the format, this fastxent reads up to {VERSION}: it needs a newer one"
        )
    if header.pop("sha256", None) != _digest(_canonical(header)):
        raise ValueError(f"{path!r} was changed or damaged: the checksum of its header is another")
    shapes = {"class": str, "params": dict, "fitted": dict, "arrays": dict}
    for name, kind in shapes.items():
        if type(header.get(name)) is not kind:
            raise ValueError(f"{path!r} is not valid: its header lacks {name!r}")
    return header


def _npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data, name, entry, path):
    """Array of a ``.npy`` member, once its own header agrees with the file's and with its length."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](stream)
        if (
            dtype.kind not in _KINDS or not dtype.itemsize
        ):  # any number of items of no size fits into any file
            raise ValueError(f"dtype {dtype} is not allowed")
        if [dtype.str, list(shape)] != [entry["dtype"], entry["shape"]]:
            raise ValueError(f"{dtype.str} {shape} is not {entry['dtype']} {entry['shape']}")
        values = np.frombuffer(data, np.uint8, offset=stream.tell())
        if values.nbytes != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{values.nbytes} bytes are no {dtype} of shape {shape}")
        return values.copy().view(dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"{path!r} is not valid: array {name!r}: {error}") from error


def _canonical(header):
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder):
    """Make the new name last through a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
