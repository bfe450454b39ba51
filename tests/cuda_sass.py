"""Kernels to machine code without a GPU or a driver: NVVM, nvJitLink, nvdisasm, all from wheels."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import types
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cuda.bindings import nvjitlink
from numba import cuda
from numba.cuda import dispatcher


class Machine(NamedTuple):
    """What a kernel became: registers, spilled bytes, PTX, opcodes, each loop's opcodes without its inner loops'."""

    registers: int
    spills: int
    stack: int
    ptx: str
    opcodes: list
    loops: list

    def count(self, *names):
        """Instructions whose name, up to the first dot or in full, is one of `names`."""
        return sum(op in names or op.partition(".")[0] in names for op in self.opcodes)


def disassembler():
    """Path of nvdisasm: the wheel's, or the one on PATH; None without either."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = [str(path) for path in wheel.glob("*/bin/nvdisasm")]
    return found[0] if found else shutil.which("nvdisasm")


def machine_code(function, signature, cc, folder, threads=None, lto=False):
    """Compile a kernel for a compute capability and read what came out.

    By way of PTX, which the machine has none of with `lto`: by way of what is optimized when it is linked, as a launch.
    """
    # device functions ask the current device for its capability, and there is none
    asked, dispatcher.get_current_device = (
        dispatcher.get_current_device,
        lambda: types.SimpleNamespace(compute_capability=cc),
    )
    try:
        bounds = {} if threads is None else {"launch_bounds": (threads,)}
        output = "ltoir" if lto else "ptx"
        code, _ = cuda.compile(function, signature, device=False, abi="numba", cc=cc, output=output, **bounds)
    finally:
        dispatcher.get_current_device = asked
    arch = f"sm_{cc[0]}{cc[1]}"
    options = [f"-arch={arch}", "-verbose", *["-lto"] * lto]
    handle = nvjitlink.create(len(options), options)
    try:
        source, kind = (
            (bytes(code), nvjitlink.InputType.LTOIR) if lto else (code.encode(), nvjitlink.InputType.PTX)
        )
        nvjitlink.add_data(handle, kind, source, len(source), "kernel")
        nvjitlink.complete(handle)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    log = log.decode()
    path = Path(folder) / "kernel.cubin"
    path.write_bytes(cubin)
    listing = subprocess.run([disassembler(), "-c", str(path)], capture_output=True, text=True, check=True)
    opcodes, loops = _read(listing.stdout)
    return Machine(
        int(re.search(r"Used (\d+) registers", log)[1]),
        sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        sum(map(int, re.findall(r"(\d+) bytes stack frame", log))),
        "" if lto else code,
        opcodes,
        loops,
    )


def _read(listing):
    instructions, labels = [], {}
    for line in listing.splitlines():
        if match := re.match(r"(\.L_\w+):", line.strip()):
            labels[match[1]] = len(instructions)
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(match[1])
    opcodes = [re.sub(r"^@!?U?P\d+\s+", "", text).split()[0] for text in instructions]
    spans = []
    for place, text in enumerate(instructions):
        match = re.search(r"BRA\S*\s+(?:\S+,\s*)?`?\(?(\.L_\w+)", text)
        if match and labels.get(match[1], place) < place:
            spans.append((labels[match[1]], place))
    loops = []
    for start, stop in spans:
        inner = [(a, b) for a, b in spans if start <= a and b <= stop and (a, b) != (start, stop)]
        own = [i for i in range(start, stop + 1) if not any(a <= i <= b for a, b in inner)]
        loops.append(Counter(opcodes[i] for i in own))
    return opcodes, loops
