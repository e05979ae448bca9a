"""The tests in `interpreted/` need TRITON_INTERPRET=1 from before Triton is first imported.

`test_interpreter.py` runs them in processes of their own; `TRITON_INTERPRET=1 pytest tests/kernels` runs them directly.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
