"""How figures are written: numbers with units and intervals in sentences, and tables in LaTeX."""

import math
from collections.abc import Iterable
from textwrap import wrap

import pandas as pd

from hybridlib.analysis.statistics import ALPHA, Effect

INTERVAL = f"{100 * (1 - ALPHA):g} % interval"
LATEX = {c: f"\\{c}" for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
WIDE_CHARACTERS = 28  # a column with longer cells is set as a paragraph
LINEWIDTHS_A_CHARACTER = 0.0105  # in a table's font, about
LONG_LINES = 25  # a table of more lines breaks over pages
# What a long table begins with: a new page where few lines are left, and a box that measures it. If that is too wide,
# font, gaps and paragraphs shrink to the text's width.
SHRUNK = r"""\begingroup\small\def\LTcaptype{table}\par
\ifdim\pagegoal<\maxdimen\ifdim\dimexpr\pagegoal-\pagetotal\relax<12\baselineskip\newpage\fi\fi
\ifdefined\tablewidth\else\newdimen\tablewidth\fi\tablewidth=\linewidth
\sbox0{%s}\dimen0=1.02\wd0 \ifdim\dimen0>\linewidth
  \edef\size{\the\dimexpr\fontdimen6\font*\number\linewidth/\number\dimen0\relax}%%
  \tabcolsep=\dimexpr\tabcolsep*\number\linewidth/\number\dimen0\relax
  \tablewidth=\dimexpr\linewidth*\number\linewidth/\number\dimen0\relax
  \fontsize{\size}{1.2\dimexpr\size\relax}\selectfont\fi"""


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, and with at least one decimal below 1000; a dash for no value.

    Sizes below 1e-3 and from 1e6 on are written with an exponent.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.{digits - 1}e}".replace("-", "−")
    if value == round(value):
        return fixed(value, 0)
    return fixed(value, max(0 if abs(value) >= 1000 else 1, digits - 1 - math.floor(math.log10(abs(value)))))


def fixed(value: float, decimals: int) -> str:
    """Return `value` with that many `decimals` and a true minus sign; never −0."""
    return f"{value + 0.0:z.{decimals}f}".replace("-", "−")


def with_unit(value: float, unit: str, sign: bool = False) -> str:
    """Return `value` with its `unit` (`2.13×`, `4.08 nats`), and with a plus `sign` if asked for (`+0.52 %`)."""
    text = number(value)
    plus = "+" if sign and value > 0 else ""
    return f"{plus}{text}{_spaced(unit)}" if text != "–" else text


def _spaced(unit: str) -> str:
    return unit if unit in ("", "×") else f" {unit}"


def estimate(effect: Effect, unit: str) -> str:
    """Return `effect` in `unit` with its interval, `2.13× [2.10, 2.17]`. The interval's width decides the decimals."""
    width = effect.high - effect.low
    if not (math.isfinite(width) and width > 0):
        return with_unit(effect.value, unit)
    decimals = sensible_decimals(effect.value, width / 2, 4)
    value, low, high = (fixed(x, decimals) for x in effect[:3])
    return f"{value}{_spaced(unit)} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """Return `p` as `0.013` or `< 0.0001`; a dash where no test was made."""
    return "–" if p is None or math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def p_is(p: float) -> str:
    """Return `p` for a sentence: `p = 0.013` or `p < 0.0001`."""
    return f"p {p_value(p)}" if p < 1e-4 else f"p = {p_value(p)}"


def sensible_decimals(value: float, spread: float, most: int) -> int:
    """Return the decimals that show two digits of the `spread`, and at `most` so many digits of the `value`."""
    two = 1 - math.floor(math.log10(spread) + 1e-9)
    return max(0, min(two, most - 1 - math.floor(math.log10(max(abs(value), 1.0)))))


def listed(names: Iterable) -> str:
    """Return the `names` as `a`, `a and b`, or `a, b and c`; `none` where there is none."""
    names = [str(n) for n in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def counted(count: int, noun: str) -> str:
    """Return `count` and the `noun`, which takes an s: `no seeds`, `1 seed`, `3 seeds`."""
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"


def escaped(text: str) -> str:
    """Return plain `text` as LaTeX that prints the same."""
    return text.translate(str.maketrans(LATEX))


def latex_table(text: pd.DataFrame, caption: str) -> str:
    """Return the frame `text` of strings as a LaTeX table with its `caption`, no wider than the page's text.

    Long cells wrap. A table of more than LONG_LINES lines breaks over pages, and repeats its head on each.
    """
    right = {c: text[c].str.match(r"[−<]? ?\d|–$|∞$").all() for c in text}
    cells = {c: text[c].str.len().max() for c in text}
    heads = {c: wrap(str(c), max(cells[c], 9), break_long_words=False) for c in text}
    widest = {c: max(cells[c], *map(len, heads[c])) for c in text}
    wrapped = [c for c in text if widest[c] > WIDE_CHARACTERS]
    left = max(0.3, 1.0 - LINEWIDTHS_A_CHARACTER * sum(widest[c] + 2 for c in text if c not in wrapped))
    shares = {c: left * widest[c] / sum(widest[c] for c in wrapped) for c in wrapped}
    paragraph = r">{{\raggedright\arraybackslash}}p{{{:.3f}\linewidth}}"
    columns = "".join(paragraph.format(shares[c]) if c in shares else "r" if right[c] else "l" for c in text)
    head = " & ".join(_head([escaped(line) for line in heads[c]], "r" if right[c] else "l") for c in text) + r" \\"
    rows = [" & ".join(row) + r" \\" for row in text.map(escaped).to_numpy()]
    top = [r"\toprule", head, r"\midrule"]
    title = rf"\caption{{{escaped(caption)}}}"

    def tabular(rows: list[str]) -> str:
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *top, *rows, r"\bottomrule", r"\end{tabular}"])

    a_line = {c: shares[c] / LINEWIDTHS_A_CHARACTER for c in wrapped}  # characters
    lines = sum(max([1, *(math.ceil(len(row[c]) / a_line[c]) for c in wrapped)]) for _, row in text.iterrows())
    if lines <= LONG_LINES:
        shrunk = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
        table = [r"\begin{table}[H]", r"\centering\small", title, shrunk, tabular(rows), r"}\end{table}"]
        return "\n".join(table)
    columns = columns.replace(r"\linewidth", r"\tablewidth")
    longest = sorted({at for c in text for at in text[c].str.len().nlargest(3, "all").index[:9]})
    table = [SHRUNK % tabular([rows[at] for at in longest]), rf"\begin{{longtable}}{{{columns}}}", title + r" \\", *top]
    table += [r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endfoot", *rows, r"\end{longtable}", r"\endgroup"]
    return "\n".join(table)


def _head(lines: list[str], side: str) -> str:
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{\strut " + r" \\ ".join(lines) + "}"
