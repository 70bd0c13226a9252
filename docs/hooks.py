"""What the site's pages need beside mkdocs: roles of docstrings, and links out of notebooks."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Leave out Sphinx's ``:func:`` and its like; link a notebook to the pages beside it."""
    html = re.sub(r'href="\.\./docs/([\w-]+)\.md', r'href="../\1.html', html)
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)
