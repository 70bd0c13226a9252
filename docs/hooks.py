"""What the site's pages need beside mkdocs: roles of docstrings become plain code."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Leave out Sphinx's ``:func:`` and its like, which markdown shows as they are."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)
