"""References from a report's text to its figures and tables, in the order in which they are shown."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hybridlib.study.crossrefs import number, resolved

CALLED = {"figure-loss": "Figure 1", "table-arms": "Table 2", "the-jump": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[The loss](#figure-loss) falls.", "[Figure 1](#figure-loss) falls."),
        ("See [arms](#table-arms) and [x](#table-none).", "See [Table 2](#table-arms) and x."),
        ("First. See [x](#table-none) and [y](#figure-none). Last.", "First. Last."),
        ("[x](#table-none) alone.", ""),
        ("[A section](#the-jump) stays. 1.5 is a number.", "[A section](#the-jump) stays. 1.5 is a number."),
        ("One.  Two spaces stay.\n\nA [paragraph](https://example.org/a_b).", None),
    ],
)
def test_what_a_reference_becomes(text: str, expected: str | None) -> None:
    assert resolved(text, CALLED) == (text if expected is None else expected)


def test_figures_and_tables_count_apart_and_in_order() -> None:
    names = [("figure", "a"), ("table", "b"), ("figure", "c"), ("text", "d"), ("table", "e")]
    outputs = [new_output("display_data", data={}, metadata=dict(kind=kind, name=name)) for kind, name in names]
    said = new_output("display_data", data={"text/markdown": "In [it](#table-e), [there](#a-jump-or-none)."})
    notebook = new_notebook(
        cells=[new_markdown_cell("[c](#figure-c)\n\n## A *jump*, or none?"), new_code_cell(outputs=[*outputs, said])]
    )
    number(notebook)
    assert [output.metadata.get("number") for output in outputs] == ["Figure 1", "Table 1", "Figure 2", None, "Table 2"]
    assert notebook.cells[0].source.startswith("[Figure 2](#figure-c)\n")
    assert said.data["text/markdown"] == "In [Table 2](#table-e), [there](#a-jump-or-none)."
