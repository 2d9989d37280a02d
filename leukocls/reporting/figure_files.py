"""The figures and tables of a report as files: SVG, PDF, CSV and LaTeX."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls.common.files import atomic_write
from leukocls.reporting.figures import Figure, pdf, svg_file
from leukocls.reporting.report_tables import (
    Rows,
    differences_table,
    intervals_table,
    result_tables,
    shortcuts_table,
    tests_table,
)

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--", "−": "$-$", ">": "$>$", "<": "$<$",
}  # fmt: skip


def write_files(folder: Path, document: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Write NAME.svg, NAME.pdf and NAME.csv of each figure, and NAME.tex of each table."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        atomic_write(folder / f"{figure.name}.svg", svg_file(figure))
        atomic_write(folder / f"{figure.name}.pdf", pdf(figure))
        atomic_write(folder / f"{figure.name}.csv", figure.table.to_csv(index=False))
    marks = " ".join(document["comparison"]["marks"])
    tables = {
        "intervals": intervals_table(document),
        "differences": differences_table(document),
        "tests": tests_table(document),
        "shortcuts": shortcuts_table(document),
    }
    tables |= {f"results-{n}": rows for n, (_, rows) in enumerate(result_tables(document))}
    titles = {f"results-{n}": name for n, (name, _) in enumerate(result_tables(document))}
    reference = document["comparison"]["reference"]
    titles |= {
        "intervals": "95 % intervals over persons and seeds, in percent",
        "differences": f"{reference} less each other arm, in points",
        "tests": f"tests over seeds whether {reference} is greater",
        "shortcuts": f"AUROC of simple features in percent; what {reference} has more, in points",
    }
    for name, rows in tables.items():
        if len(rows) > 1:
            caption = f"{marks} {titles[name]}".strip()
            atomic_write(folder / f"{name}.tex", latex(rows, caption))


def latex(rows: Rows, caption: str) -> str:
    """A table for LaTeX's `booktabs`, the first row being its header."""
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    return "\n".join([
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _escaped(text: object) -> str:
    # A hyphen is shorter than a minus; the one of 1e-4 in a name stays.
    signed = re.sub(r"(?<!\w)-(?=\d)", "−", str(text))
    return "".join(_LATEX.get(letter, letter) for letter in signed)
