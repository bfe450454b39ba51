"""Fuzz one target: `python fuzz/run.py TARGET [options of libFuzzer]`; `make fuzz` runs all of them in turn.

Atheris watches which lines of the package a case reaches and keeps the bytes of those that reach new ones. The
extension is under AddressSanitizer meanwhile, which ends the process where a kernel leaves its arrays.
"""

import sys

import atheris

with atheris.instrument_imports(include=["fastxent"]):
    import cases


def main():
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: cases.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
