"""Other libraries, whose own code makes and reads what the tests of ``interop`` compare with.

They are no dependencies of rolelens. ``pip install --no-deps --target FOLDER LIBRARY`` puts them
where ``ROLELENS_FOREIGN=FOLDER`` finds them; tests of those that are not there are skipped.
"""

import importlib
import os
import sys
import warnings
from typing import Any

import numpy as np
import pytest

FOLDER = os.environ.get("ROLELENS_FOREIGN")


def foreign(name: str) -> Any:
    """A module of another library, or a skipped test."""
    if FOLDER and FOLDER not in sys.path:
        sys.path.append(FOLDER)  # behind what is installed, so that nothing is replaced
    if name == "repeng" and not hasattr(np, "float_"):
        np.float_ = np.float64  # a name of numpy 1 in an annotation of repeng's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name.split('.')[0]} cannot be imported ({error})")
