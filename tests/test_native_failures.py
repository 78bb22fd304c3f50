"""What goes wrong in the native core comes to Python as an error, and does not end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernels import needs_kernels


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's here")
def test_memory_that_is_missing_is_an_error():
    code = """
import ctypes, resource
from groupwise import GroupwiseError
from groupwise.kernels import native
library, names, none = native.library(), b"x," * 30_000_000, (ctypes.c_double * 1)(1.0)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    library.groupwise_model(b"", names, none, 1)
except GroupwiseError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert native.build()["kernels"]
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "groupwise's native core failed: std::bad_alloc\n"), done.stderr
