"""Build the extensions; everything else about the package stands in pyproject.toml.

The kernels have one translation unit per instruction set. Each is compiled once, with its own flags, and
linked into `fastxent._core`, which chooses a table of functions at import. An instruction set that the
compiler does not know is left out, and the build log says so. Environment:

FASTXENT_DEBUG=1                     -O1 -g, assertions, Cython bounds checks
FASTXENT_SANITIZE=address,undefined  the same under these sanitizers
FASTXENT_THREADS=0                   a build without threads
"""

import json
import os
import shutil
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

PACKAGE = "src/fastxent/"
KERNELS = PACKAGE + "_kernels/"
HEADERS = sorted(
    path.as_posix() for path in Path(PACKAGE).rglob("*") if path.suffix in (".hpp", ".h", ".inc", ".pxd")
)

SANITIZE = os.environ.get("FASTXENT_SANITIZE", "")
DEBUG = os.environ.get("FASTXENT_DEBUG", "0") == "1" or bool(SANITIZE)
THREADS = os.environ.get("FASTXENT_THREADS", "1") != "0"

# Strict IEEE arithmetic: infinities, NaN, denormals and the order of operations are as written. Two flags give up what
# no kernel reads: errno after a call of libm, and the flags of floating-point exceptions (for their sake GCC would take
# `x > 0 ? x + l : l` for control flow in AVX2 loops). Wheels travel, so nothing depends on the machine that builds.
# CPython's own CFLAGS carry -g, which makes the extension five times as large: hence -g0.
CFLAGS = ["-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
CFLAGS += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"] if DEBUG else ["-O3", "-g0"]
# CPython's CFLAGS carry -fwrapv too, with which kernels take up to 1.14 times as long where the data comes from memory,
# and UBSan is blind to signed overflow. Cython's own sources keep it.
KERNEL_FLAGS = ["-fno-wrapv"]
LDFLAGS = []
if THREADS:
    CFLAGS.append("-pthread")
    LDFLAGS.append("-pthread")
if SANITIZE:
    CFLAGS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    LDFLAGS.append(f"-fsanitize={SANITIZE}")
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
MACROS += [] if THREADS else [("FX_NO_THREADS", "1")]

ISA = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
IS_X86_64 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
PROBE = "typedef float v __attribute__((vector_size({width})));\nvoid probe(v *a) {{ *a = *a * *a + *a; }}\n"


class Build(build_ext):
    """Compile each kernel source with its own flags and hand the objects to the linker of `_core`."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or True

    def build_extensions(self):
        link = self.use_clang_cl() if self.compiler.compiler_type == "msvc" else LDFLAGS
        known = [isa for isa in ISA if IS_X86_64 and self.accepts(isa)]
        macros = MACROS + [(f"FX_NO_{isa.upper()}", "1") for isa in ISA if isa not in known]
        kernels = {f"{KERNELS}{name}.cpp": KERNEL_FLAGS for name in ("team", "isa_baseline")}
        kernels |= {f"{KERNELS}isa_{isa}.cpp": KERNEL_FLAGS + ISA[isa] for isa in known}
        compiler = getattr(self.compiler, "compiler_so_cxx", None)
        record = self.record([compiler, CFLAGS, LDFLAGS, macros, kernels])
        for ext in self.extensions:
            ext.define_macros = macros
            ext.extra_compile_args = self.spelled(CFLAGS)
            ext.extra_link_args = link
            ext.depends = [*ext.depends, record]
        core = next(ext for ext in self.extensions if ext.name == "fastxent._core")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(self.kernel_object, record, macros, *kernel) for kernel in kernels.items()]
            core.extra_objects = [job.result() for job in jobs]
        super().build_extensions()

    def use_clang_cl(self):
        """Compile with LLVM on Windows, since cl.exe has no vector extensions; what its linker then needs.

        That is the library behind `__builtin_cpu_supports`, which stands beside the compiler.
        """
        clang_cl = shutil.which("clang-cl")
        if clang_cl is None:
            raise PlatformError("fastxent needs the vector extensions of GCC or Clang: put clang-cl on PATH")
        self.compiler.initialize()
        self.compiler.cc = clang_cl
        library = "lib/clang/*/lib/windows/clang_rt.builtins-x86_64.lib"
        found = sorted(Path(clang_cl).resolve().parents[1].glob(library)) if IS_X86_64 else []
        if IS_X86_64 and not found:
            raise PlatformError(f"fastxent needs LLVM's {library} beside {clang_cl}")
        return [str(path) for path in found[-1:]]

    def spelled(self, flags):
        """The flags as this compiler wants them: clang-cl passes GCC's on behind `/clang:`."""
        if self.compiler.compiler_type != "msvc":
            return flags
        return ["/EHsc", *(f"/clang:{flag}" for flag in flags if flag != "-pthread")]

    def accepts(self, isa):
        """Whether compiler and assembler know the instruction set."""
        flags = ISA[isa]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(PROBE.format(width=64 if isa == "avx512" else 32))
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=self.spelled(flags))
            except CompileError:
                self.warn(f"the compiler rejects {' '.join(flags)}: building fastxent without {isa} kernels")
                return False
        return True

    def record(self, settings):
        """A file that is rewritten, and so newer than every object, when the settings of the build change."""
        path = Path(self.build_temp, "settings.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != repr(settings):
            path.write_text(repr(settings))
        return str(path)

    def kernel_object(self, record, macros, source, flags):
        """Path of the object file of one kernel source, compiled if anything it depends on is newer."""
        target = self.compiler.object_filenames([source], output_dir=self.build_temp)[0]
        newest = max(os.path.getmtime(path) for path in [source, record, "setup.py", *HEADERS])
        if self.force or not os.path.exists(target) or os.path.getmtime(target) <= newest:
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=[KERNELS],
                extra_postargs=self.spelled(CFLAGS + flags),
            )
        return target


class Wheel(bdist_wheel):
    """A wheel with a bill of materials in its `.dist-info/sboms` (PEP 770, CycloneDX).

    It lists what is compiled into the extensions and that no metadata name otherwise: code that Cython generates, and
    NumPy's headers. What the package imports is in its metadata.
    """

    def write_wheelfile(self, wheelfile_base, *args, **options):
        super().write_wheelfile(wheelfile_base, *args, **options)
        folder = Path(wheelfile_base, "sboms")
        folder.mkdir(exist_ok=True)
        text = json.dumps(self.bill_of_materials(), indent=2)
        (folder / "fastxent.cdx.json").write_text(text + "\n", encoding="utf-8")

    def bill_of_materials(self):
        """The same for the same versions: no date, no serial number."""
        whole = component("fastxent", self.distribution.get_version(), "BSD-3-Clause")
        parts = [
            component("cython", Cython.__version__, "Apache-2.0"),
            component("numpy", numpy.__version__, "BSD-3-Clause"),
        ]
        uses = {"ref": whole["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": whole},
            "components": parts,
            "dependencies": [uses, *({"ref": part["bom-ref"]} for part in parts)],
        }


def component(name, version, license_id):
    """A package of PyPI in a bill of materials."""
    purl = f"pkg:pypi/{name}@{version}"
    license_of = [{"license": {"id": license_id}}]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": license_of,
        "purl": purl,
    }


def extension(name):
    """One Cython module; a changed kernel is a reason to link `_core` again."""
    return Extension(
        f"fastxent.{name}",
        [f"{PACKAGE}{name}.pyx"],
        include_dirs=[KERNELS, numpy.get_include()],
        language="c++",
        depends=["setup.py", *HEADERS, *glob(f"{KERNELS}*.cpp")],
    )


setup(
    ext_modules=cythonize(
        [extension("_core"), extension("_dense"), extension("_step")],
        # Outside the package, and one folder per setting: Cython's up-to-date check does not see directives.
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        compiler_directives={"boundscheck": True} if DEBUG else {},
        show_all_warnings=False,
    ),
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
