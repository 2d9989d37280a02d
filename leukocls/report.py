"""Report on runs: `python -m leukocls.report RUNS… --out report.html` writes one page."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.arguments import add_comparison_options
from leukocls.common.errors import LeukoclsError, run_verb

if TYPE_CHECKING:
    from leukocls.evaluation.comparison import Comparison
    from leukocls.reporting.pictures import Pictures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.report",
        description="One HTML page on runs: checks, results beside the paper's, intervals over"
        " persons, figures, the hardest cells and a card. It opens without a network.",
    )
    add_comparison_options(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    add("--figures", type=Path, metavar="DIR", help="also write SVG, PDF, CSV and LaTeX files")
    add("--robustness", type=Path, metavar="FILE.json", help="of `robustness --out`, for a figure")
    add("--data", type=Path, metavar="ROOT", help="the images, for pictures of the hardest cells")
    add("--maps", action="store_true", help="with --data: also what the median run's network looks"
        " at in them, as `explain` draws it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, report.json beside it, and with --figures each figure and table as files.

    Raises:
        LeukoclsError: runs that are missing or cannot be compared, or a place for no file.
        DataFault: damaged runs.
    """
    arguments = _parser().parse_args(argv)
    if arguments.maps and not arguments.data:
        raise LeukoclsError("--maps: needs the images; name them with --data ROOT")
    if arguments.out.is_dir():
        raise LeukoclsError(f"{arguments.out}: is a folder; name a file, such as report.html")

    from leukocls.common.files import atomic_write
    from leukocls.evaluation.comparison import scored_comparison
    from leukocls.reporting.arm_names import with_short_names
    from leukocls.reporting.document import report_document
    from leukocls.reporting.figure_files import write_files
    from leukocls.reporting.page import headline_text, page
    from leukocls.reporting.report_figures import figures
    from leukocls.reporting.robustness_figure import robustness_figure

    found = scored_comparison(
        arguments.runs, arguments.against, arguments.seeds, arguments.incomplete
    )
    document = report_document(found, arguments.robustness)
    shown = with_short_names(document)
    drawn = figures(shown)
    if document["robustness"]:
        drawn.append(robustness_figure(document["robustness"]))
    pictures = _pictures(arguments, document, found) if arguments.data else None
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    atomic_write(arguments.out.with_suffix(".json"), text)
    atomic_write(arguments.out, page(shown, drawn, pictures))
    if arguments.figures:
        write_files(arguments.figures, shown, drawn)
    print(f"{headline_text(document)}\nReport: {arguments.out}")
    return 0


def _pictures(
    arguments: argparse.Namespace, document: dict[str, Any], found: "Comparison"
) -> "Pictures":
    """Pictures of the hardest cells, and with --maps of what a network looks at in them."""
    from leukocls.data.index import build_index
    from leukocls.evaluation.curves import median_run
    from leukocls.reporting.pictures import files_of, thumbnails

    files = files_of(document, build_index(arguments.data))
    pictures = thumbnails(files)
    if arguments.maps:
        from leukocls.inference.sheet import map_pictures

        median = median_run(list(found.arms[found.reference].values()))
        if median.result.get("folds"):
            raise LeukoclsError(
                f"--maps: {found.reference} is a cross-validation, in which each cell has a network"
                " of its own; leave --maps out, or bundle a fold's run and see `explain`"
            )
        for name, maps in map_pictures(median.run.directory, files).items():
            pictures[name] |= maps
    return pictures


if __name__ == "__main__":
    run_verb(main)
