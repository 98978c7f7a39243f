"""Leaves out of a report what has nothing to show: figures and tables of runs that a study's plan does not have."""

from itertools import groupby

from nbformat import NotebookNode


def without_empty(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells without empty figures and tables and the sentences on how to read them, and without the sections that have
    nothing else."""
    kept: list[NotebookNode] = []
    for section in sections(cells):
        full = [cell for at, cell in enumerate(section) if not (is_empty(cell) or is_reading(section, at))]
        if len(full) == len(section) or any(cell.get("outputs") for cell in full):
            kept += full
    return kept


def sections(cells: list[NotebookNode]) -> list[list[NotebookNode]]:
    """Each heading with all that follows it up to the next."""
    at, number = 0, []
    for cell in cells:
        at += is_heading(cell)
        number.append(at)
    return [[cell for _, cell in group] for _, group in groupby(zip(number, cells), key=lambda pair: pair[0])]


def is_heading(cell: NotebookNode) -> bool:
    return cell.cell_type == "markdown" and cell.source.startswith("#")


def is_empty(cell: NotebookNode) -> bool:
    """Whether a cell shows figures or tables, and none of them has a record in it."""
    shown = [output.metadata["empty"] for output in cell.get("outputs", []) if "empty" in output.get("metadata", {})]
    return bool(shown) and all(shown)


def is_reading(section: list[NotebookNode], at: int) -> bool:
    """Whether a cell says how to read what the cell before it would have shown."""
    return at > 0 and section[at].cell_type == "markdown" and is_empty(section[at - 1])
