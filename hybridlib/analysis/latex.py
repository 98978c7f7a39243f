"""Tables and their text in LaTeX: no wider than the page's text, and no type smaller than LEAST_PT."""

import math
import re
from dataclasses import dataclass
from textwrap import wrap

import pandas as pd

from hybridlib.study.typesetting import LEAST_PT, TYPE_PT

LATEX = {c: f"\\{c}" for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
WIDE_CHARACTERS = 28  # a column with longer cells is set as a paragraph
LINEWIDTHS_A_CHARACTER = 0.0086  # in a table's type, about
LANDSCAPE = 1.54  # how much wider the text of a page is that is turned
LONG_LINES = 25  # a table of more lines breaks over pages
# Both kinds tell the log how far they shrink, for whoever looks that nothing gets too small.
BOXED = r"""\sbox0{%s}\ifdim\wd0>\linewidth\typeout{Shrunk {%s} from \the\wd0\space to \the\linewidth}%%
\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"""
# What a long table begins with: a place where the page may end, so that LaTeX knows how much of it is left; a new page
# where few lines are; and a box that measures it. If that is too wide, type, gaps and paragraphs shrink to the text's
# width.
SHRUNK = r"""\begingroup\footnotesize\def\LTcaptype{table}\par
\penalty0\relax\ifdim\pagegoal<\maxdimen\ifdim\dimexpr\pagegoal-\pagetotal\relax<12\baselineskip\newpage\fi\fi
\ifdefined\tablewidth\else\newdimen\tablewidth\fi\tablewidth=\linewidth \tabcolsep=4pt
\sbox0{%s}\dimen0=1.02\wd0 \ifdim\dimen0>\linewidth\typeout{Shrunk {%s} from \the\dimen0\space to \the\linewidth}%%
  \edef\size{\the\dimexpr\fontdimen6\font*\number\linewidth/\number\dimen0\relax}%%
  \tabcolsep=\dimexpr\tabcolsep*\number\linewidth/\number\dimen0\relax
  \tablewidth=\dimexpr\linewidth*\number\linewidth/\number\dimen0\relax
  \fontsize{\size}{1.2\dimexpr\size\relax}\selectfont\fi"""


def escaped(text: str) -> str:
    """Return plain `text` as LaTeX that prints the same."""
    return text.translate(str.maketrans(LATEX))


def prose(text: str) -> str:
    """Return a sentence in Markdown, `text`, as LaTeX: its `code` is typewritten, and the rest plain."""
    parts = re.split(r"`([^`]*)`", text)
    return "".join(rf"\texttt{{{escaped(part)}}}" if at % 2 else escaped(part) for at, part in enumerate(parts))


def caption_of(target: str, caption: str, reading: str, chapter: str) -> str:
    """Return the LaTeX caption of a table or figure, which links reach as `target`: a `caption`, which lists show, a
    `reading` that says how to read it, and a link to the `chapter` that it comes from, unless that is empty.
    """
    number, _, title = chapter.partition("_")
    where = rf" \href{{notebooks/{chapter}.ipynb}}{{Chapter {number}, {escaped(title)}}}." if chapter else ""
    text = prose(f"{caption} {reading}".strip()) + where
    return rf"\caption[{{{prose(caption)}}}]{{\hypertarget{{{target}}}{{}}{text}}}\label{{{target}}}"


def numeric(cells: pd.Series) -> bool:
    """Return whether each of the `cells`, strings, is a number or a dash, so that their column is set to the right."""
    return bool(cells.str.match(r"[−<+]? ?\d|–$|∞$").all())


@dataclass(frozen=True)
class Layout:
    """How a table's columns are set: the `heads` of each in lines, whether they go to the `right`, and the `shares` of
    the text's width of those whose cells wrap. A table that would shrink too much is `turned`, and one that breaks over
    pages is `long`.
    """

    heads: dict[str, list[str]]
    right: dict[str, bool]
    shares: dict[str, float]
    turned: bool
    long: bool

    @classmethod
    def of(cls, text: pd.DataFrame) -> "Layout":
        """Return the layout of the frame `text` of strings, from how long its cells are."""
        right = {c: numeric(text[c]) for c in text}
        cells = {c: text[c].str.len().max() for c in text}
        heads = {c: wrap(str(c), max(cells[c], 9), break_long_words=False) for c in text}
        widest = {c: max(cells[c], *map(len, heads[c])) for c in text}
        wrapped = [c for c in text if widest[c] > WIDE_CHARACTERS]
        fixed = LINEWIDTHS_A_CHARACTER * sum(widest[c] + 2 for c in text if c not in wrapped)
        turned = fixed + 0.15 * len(wrapped) > TYPE_PT / LEAST_PT
        page = LANDSCAPE if turned else 1.0
        left = max(0.15 * len(wrapped), page - fixed - 2 * LINEWIDTHS_A_CHARACTER * len(wrapped)) / page
        needed = {c: 1.05 * LINEWIDTHS_A_CHARACTER * widest[c] / page for c in wrapped}  # on one line
        shares = {c: min(left * widest[c] / sum(widest[c] for c in wrapped), needed[c]) for c in wrapped}
        a_line = {c: page * shares[c] / LINEWIDTHS_A_CHARACTER for c in wrapped}  # characters
        lines = sum(max([1, *(math.ceil(len(row[c]) / a_line[c]) for c in wrapped)]) for _, row in text.iterrows())
        return cls(heads, right, shares, turned, lines > LONG_LINES)

    @property
    def columns(self) -> str:
        """LaTeX's column types."""
        width = r"\tablewidth" if self.long else r"\linewidth"
        paragraph = r">{\raggedright\arraybackslash}p{%.3f" + width + "}"
        plain = {c: "r" if right else "l" for c, right in self.right.items()}
        return "".join(paragraph % self.shares[c] if c in self.shares else plain[c] for c in plain)

    @property
    def head(self) -> str:
        """The row of heads in LaTeX."""
        heads = ([escaped(line) for line in lines] for lines in self.heads.values())
        return " & ".join(_head(lines, "r" if right else "l") for lines, right in zip(heads, self.right.values()))


def latex_table(text: pd.DataFrame, name: str, caption: str, reading: str = "", chapter: str = "") -> str:
    """Return the frame `text` of strings as a LaTeX table called `name`, with `caption`, `reading` and `chapter`.

    Long cells wrap. A table of more than LONG_LINES lines breaks over pages, and repeats its head on each. One that
    would shrink below LEAST_PT lies on a page of its own that is turned.
    """
    layout = Layout.of(text)
    rows = [" & ".join(row) + r" \\" for row in text.map(escaped).to_numpy()]
    top = [r"\toprule", layout.head + r" \\", r"\midrule"]
    title = caption_of(f"table-{name}", caption, reading, chapter)

    def tabular(rows: list[str]) -> str:
        return "\n".join([rf"\begin{{tabular}}{{{layout.columns}}}", *top, *rows, r"\bottomrule", r"\end{tabular}"])

    if not layout.long:
        kind = "sidewaystable" if layout.turned else "table"
        place = "" if layout.turned else "[htbp]"
        begin = [rf"\begin{{{kind}}}{place}", r"\centering\footnotesize\tabcolsep=4pt", title]
        return "\n".join([*begin, BOXED % (tabular(rows), name), rf"\end{{{kind}}}"])
    longest = sorted({at for c in text for at in text[c].str.len().nlargest(3, "all").index[:9]})
    table = [SHRUNK % (tabular([rows[at] for at in longest]), name), rf"\begin{{longtable}}{{{layout.columns}}}"]
    table += [title + r" \\", *top, r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endfoot", *rows]
    table += [r"\end{longtable}", r"\endgroup"]
    return "\n".join([r"\begin{landscape}", *table, r"\end{landscape}"] if layout.turned else table)


def _head(lines: list[str], side: str) -> str:
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{\strut " + r" \\ ".join(lines) + "}"
