"""Other libraries, whose own code makes and reads what the tests of ``interop`` compare with.

They are no dependencies of rolelens. ``make`` installs those of ``foreign.txt``; tests of others
(lm_eval, inspect_ai, llama_cpp) are skipped where those are not installed.
"""

import importlib
import warnings
from typing import Any

import numpy as np
import pytest


def foreign(name: str) -> Any:
    """A module of another library, or a skipped test."""
    if name == "repeng" and not hasattr(np, "float_"):
        np.float_ = np.float64  # a name of numpy 1 in an annotation of repeng's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name.split('.')[0]} cannot be imported ({error})")
