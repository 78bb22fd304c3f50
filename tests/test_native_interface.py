"""The version of the core's interface counts what Python calls by torch.ops and torch.classes."""

from __future__ import annotations

import hashlib
import re

import torch

from groupwise.kernels import native
from kernels import needs_kernels

# The version, and what stands for the signatures. A change of them needs a new version.
INTERFACE = {17: "eaa6cb69b39965e7"}


@needs_kernels
def test_the_version_counts_operators_and_classes():
    schemas = [*torch._C._jit_get_custom_class_schemas(), *torch._C._jit_get_all_schemas()]
    # Those of conv_per_sample are defined in Python, where it is imported.
    core = r"^groupwise::(?!conv_per_sample)|torch\.classes\.groupwise\."
    ours = sorted({str(one) for one in schemas if re.search(core, str(one))})
    found = hashlib.sha256("\n".join(ours).encode()).hexdigest()[:16]
    assert {native.API_VERSION: found} == INTERFACE, (
        "raise GROUPWISE_API_VERSION and API_VERSION, and note the new pair"
    )
