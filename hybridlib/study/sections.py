"""Leaves out of a report what has nothing to show: figures and tables of runs that a study's plan does not have."""

from itertools import groupby

from nbformat import NotebookNode


def without_empty(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return the cells without what is empty, and without the sections that have nothing else."""
    kept: list[NotebookNode] = []
    for section in sections(cells):
        full = [cell for cell in map(with_records, section) if cell is not None]
        if len(full) == len(section) or any(cell.get("outputs") for cell in full):
            kept += full
    return kept


def sections(cells: list[NotebookNode]) -> list[list[NotebookNode]]:
    """Return each heading with all that follows it up to the next."""
    at, number = 0, []
    for cell in cells:
        at += is_heading(cell)
        number.append(at)
    return [[cell for _, cell in group] for _, group in groupby(zip(number, cells), key=lambda pair: pair[0])]


def is_heading(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and cell.source.startswith("#")


def with_records(cell: NotebookNode) -> NotebookNode | None:
    """Return a cell without the outputs that have no record in them; None if it has no others."""
    outputs = cell.get("outputs", [])
    full = [output for output in outputs if not output.get("metadata", {}).get("empty")]
    if len(full) < len(outputs):
        cell = NotebookNode(cell, outputs=full)
    return cell if full or not outputs else None
