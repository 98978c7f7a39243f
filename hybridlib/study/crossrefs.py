"""Numbers for a report's figures and tables, alike in every format, and its cross-references to them."""

import re

from nbformat import NotebookNode

REFERENCE = re.compile(r"\[([^]]*)\]\(#([\w-]+)\)")  # as `[the loss](#figure-loss_by_step)`, or a section's name
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?]) +")  # between two of them


def number(notebook: NotebookNode) -> None:
    """Give each figure and table of `notebook` its `number`, and name it so where the text refers to it.

    Both kinds count from 1 in the order in which they are shown, as LaTeX counts them. A section is referred to by its
    heading, in lower case and with hyphens, as pandoc calls it. A sentence that refers to nothing but what is not there
    is left out; in others such a reference keeps its words.
    """
    counts = {"figure": 0, "table": 0}
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    called = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-"): "" for heading in HEADING.findall(texts)}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    for output in outputs:
        if (kind := output.get("metadata", {}).get("kind")) in counts:
            counts[kind] += 1
            output.metadata["number"] = f"{kind.capitalize()} {counts[kind]}"
            called[f"{kind}-{output.metadata['name']}"] = output.metadata["number"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = resolved(cell.source, called)
    for output in outputs:
        data = output.get("data", {})
        if "text/markdown" in data and output.get("metadata", {}).get("kind") is None:
            data["text/markdown"] = resolved(data["text/markdown"], called)


def resolved(text: str, called: dict[str, str]) -> str:
    """Return Markdown `text` with its references; `called` has each target's name, or nothing where words stay."""

    def named(found: re.Match[str]) -> str:
        words, target = found.groups()
        return f"[{called[target] or words}](#{target})" if target in called else words

    def sentences(line: str) -> str:
        parts = [(part, [target for _, target in REFERENCE.findall(part)]) for part in SENTENCE.split(line)]
        kept = [part for part, targets in parts if not targets or not called.keys().isdisjoint(targets)]
        return " ".join(kept) if len(kept) < len(parts) else line

    return REFERENCE.sub(named, "\n".join(map(sentences, text.split("\n"))))
