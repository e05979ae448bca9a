"""The tests in `interpreted/` need TRITON_INTERPRET=1 from before Triton is first imported, or a GPU.

`test_interpreter.py` runs them in processes of their own; `TRITON_INTERPRET=1 pytest tests/kernels` runs them directly,
and `ANIT_KERNEL_DEVICE=cuda pytest tests/kernels/interpreted` the same tests with the compiled kernels on a GPU.
"""

from __future__ import annotations

import os

asked = os.environ.get("TRITON_INTERPRET") == "1" or "ANIT_KERNEL_DEVICE" in os.environ
collect_ignore = [] if asked else ["interpreted"]
