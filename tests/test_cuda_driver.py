"""numba-cuda's own launches on a driver without a device: devices, threads, streams, and the way past Numba.

`cuda_driver.c` stands in the place of libcuda.so.1. Everything above it is real: numba-cuda compiles and loads the
kernels, cuda.core and cuda.bindings pass the arguments on. Kernels do not run, so there are no results to look at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

numba_cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
if getattr(numba_cuda, "implementation", None) != "NVIDIA":
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

SOURCE = Path(__file__).with_name("cuda_driver.c")
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the driver is a shared object of Linux"),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C compiler"),
]

SCRIPT = """
import json, os, threading
import numpy as np
from numba import cuda
import fastxent as fx

log = os.environ["FAKE_CUDA_LOG"]
found = {}


def arrays():
    return cuda.to_device(np.zeros((8, 16), np.float32)), cuda.to_device(np.zeros(8, np.int64))


def call(z, y, times=2):
    for _ in range(times):
        fx.softmax_cross_entropy_with_grad(z, y, out=z, check=False, ignore_index=None)


def noted(name, function):
    open(log, "w").close()
    function()
    found[name] = open(log).read().splitlines()


class Foreign:
    def __init__(self, array, stream):
        self.array, self.shape = array, array.shape
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "stream": stream}


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def on_the_second():
    cuda.select_device(1)
    call(*arrays())


def no_context():
    call(z, y)


noted("first", lambda: call(*arrays(), 3))
z, y = arrays()
noted("thread without a context", lambda: in_a_thread(no_context))
noted("second device", lambda: in_a_thread(on_the_second))
noted("first device again", lambda: call(z, y, 1))
noted("default stream", lambda: call(Foreign(z, 1), y, 1))
noted("own stream", lambda: call(Foreign(z, 0x1234), y, 1))
noted("checked", lambda: fx.softmax_cross_entropy_with_grad(z, y))
t = cuda.to_device(np.zeros((8, 16), np.float32))
none = cuda.to_device(np.zeros((0, 16), np.float32)), cuda.to_device(np.zeros(0, np.int64))
CE = fx.SoftmaxCrossEntropy
doors = {
    "sigmoid": lambda: fx.sigmoid_cross_entropy_with_grad(z, t),
    "sigmoid in place": lambda: fx.sigmoid_cross_entropy_with_grad(z, t, out=z),
    "probabilities": lambda: fx.binary_cross_entropy_with_grad(z, t),
    "curvature": lambda: fx.FocalLoss(alpha=0.5).grad_hess(z, y, hessian="upper"),
    "product": lambda: fx.FocalLoss().hvp(z, y, t),
    "class weights": lambda: CE(class_weight=(1.0,) * 16).loss_grad(z, y),
    "backward": lambda: fx.softmax_cross_entropy_backward(2.0, z, y, fx.softmax_cross_entropy_forward(z, y)[1]),
    "divergence": lambda: fx.JensenShannonLoss().loss_grad(z, t),
    "shard": lambda: fx.partial_lse(z, y, 0),
    "no rows": lambda: fx.softmax_cross_entropy_with_grad(*none),
}
for name, door in doors.items():
    noted(name, door)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the driver was asked for, by the name of what was done."""
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    paths = os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {**os.environ, "LD_LIBRARY_PATH": paths, "FAKE_CUDA_LOG": str(folder / "log")}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def launches(lines):
    """(who launched, stream, device, start of the kernel's name) of every launch."""
    cut = [line.split() for line in lines if line.split()[0] in ("numba", "direct")]
    kernels = ("tile_kernel", "combine", "label_totals")
    return [
        (who, stream, device, next(name for name in kernels if name[:10] in kernel))
        for who, _, stream, _, device, kernel in cut
    ]


def test_every_kernel_is_launched_once(found):
    """The first time by Numba, which loads it; then by the driver's function, without loading."""
    assert launches(found["first"]) == [
        ("numba", "0", "0", "tile_kernel"),
        ("numba", "0", "0", "combine"),
        *[("direct", "0", "0", "tile_kernel"), ("direct", "0", "0", "combine")] * 2,
    ]
    assert sum(line.startswith("load") for line in found["first"]) == 2
    assert not any(line.startswith("wait") for line in found["first"])


def test_threads_and_devices(found):
    """A thread's own context, current or made by Numba; a kernel that was loaded for one device serves the other."""
    assert {device for _, _, device, _ in launches(found["thread without a context"])} == {"0"}
    assert {device for _, _, device, _ in launches(found["second device"])} == {"1"}
    assert {device for _, _, device, _ in launches(found["first device again"])} == {"0"}
    for name in ("thread without a context", "second device"):
        assert len(launches(found[name])) == 4


def test_streams_of_the_array_interface(found):
    """Work waits on the device, not on the host, for the stream that an array is bound to."""
    assert len(found["default stream"]) == 2
    kinds = [line.split(" stream")[0] for line in found["own stream"]]
    assert kinds[-2:] == ["direct", "direct"]
    assert kinds[:-2] == ["event", "after an event"] * (len(kinds) // 2 - 1)
    assert found["own stream"][0].startswith("event stream 1234")
    assert found["own stream"][1].startswith("after an event stream 0")


def test_numbas_arrays_go_through_every_door(found):
    """Something is launched for each; nothing was raised, or there would be nothing here."""
    names = list(found)
    assert names[-1] == "no rows"
    for name in names[names.index("sigmoid") :]:
        assert any(line.startswith(("numba", "direct")) for line in found[name]), name


def test_the_check_of_the_targets_waits_once(found):
    waits = [line for line in found["checked"] if line.startswith("wait")]
    assert len(waits) == 1
    assert [kernel for *_, kernel in launches(found["checked"])] == ["label_totals", "tile_kernel", "combine"]
