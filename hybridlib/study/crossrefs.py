"""Numbers for a report's figures and tables, alike in every format, and its cross-references to them."""

import re

from nbformat import NotebookNode

REFERENCE = re.compile(r"\[([^]]*)\]\(#((?:figure|table)-\w+)\)")  # as `[the loss](#figure-loss_by_step)`


def number(notebook: NotebookNode) -> None:
    """Give each figure and table of `notebook` its `number`, and name it so where the text refers to it.

    Both kinds count from 1 in the order in which they are shown, as LaTeX counts them. A reference to what is not there
    keeps its words and links to nothing.
    """
    counts = {"figure": 0, "table": 0}
    numbers: dict[str, str] = {}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    for output in outputs:
        if (kind := output.get("metadata", {}).get("kind")) in counts:
            counts[kind] += 1
            output.metadata["number"] = f"{kind.capitalize()} {counts[kind]}"
            numbers[f"{kind}-{output.metadata['name']}"] = output.metadata["number"]

    def named(found: re.Match[str]) -> str:
        words, target = found.groups()
        return f"[{numbers[target]}](#{target})" if target in numbers else words

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = REFERENCE.sub(named, cell.source)
    for output in outputs:
        data = output.get("data", {})
        if "text/markdown" in data and output.get("metadata", {}).get("kind") is None:
            data["text/markdown"] = REFERENCE.sub(named, data["text/markdown"])
