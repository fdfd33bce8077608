"""Starts what its arguments name with a clock that is wrong: SECONDS, the interpreter, `-m`, ..."""

import runpy
import sys
import time

if __name__ == "__main__":
    seconds = float(sys.argv[1])
    module = sys.argv[4]
    real = time.time
    time.time = lambda: real() + seconds
    sys.argv = sys.argv[4:]
    sys.path.insert(0, "")
    runpy.run_module(module, run_name="__main__", alter_sys=True)
