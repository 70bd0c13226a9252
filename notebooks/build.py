"""Run the notebooks and store their outputs; plots are kept as pictures too, for static viewers."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def sources(notebook: Any) -> str:
    """Hash of all code, stored beside the outputs it gave."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def execute(path: Path, renderer: str) -> Any:
    """The notebook with fresh outputs."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PLOTLY_RENDERER"] = renderer
    # It may say that ipywidgets is not installed, which shows progress and is not needed.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        # What the browser that draws the pictures says of itself is no output of the cell.
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if "choreographer" not in o.get("text", "")]
    notebook.metadata["rolelens_sources"] = sources(notebook)
    return notebook


def main(names: list[str]) -> None:
    """Run the named notebooks, or all of them."""
    import nbformat

    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(execute(path, "plotly_mimetype+png"), path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
