"""A page in the browser to try a bundle: drop images, see what its networks say about them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio
import jinja2
import numpy as np

from leukocls.artifacts.marks import MEANINGS
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.images import around_cell
from leukocls.inference.images import SUFFIXES, TOGETHER, Cell, Reading, memory, read_cell
from leukocls.inference.prediction_sheet import remarks
from leukocls.inference.saliency import Maps, maps
from leukocls.inference.sheet import overlaid
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.reporting.pictures import as_jpeg

MOST = 24  # images at a time
NEIGHBOURS = 3  # training cells shown for each
LARGEST = "20mb"  # of one file; a BMP of 600 x 600 pixels has 1
CSS = """
.leukocls-scroll { overflow-x: auto; } .leukocls-scroll table { border-collapse: collapse; }
.leukocls-scroll th, .leukocls-scroll td { padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; min-width: 5rem; }
.leukocls-scroll img { background: #000; max-width: none; }
.or { color: inherit !important; } /* gradio's own is too pale to read */
"""
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("leukocls.inference"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


def answer(predictor: TorchPredictor, places: Sequence[str], reading: Reading) -> str:
    """The answer to uploaded images, as HTML; their files are removed.

    Args:
        places: of at most MOST files; of more, the first are answered.
    """
    read, skipped = [], []
    paths = [Path(place) for place in dict.fromkeys(places)]
    weighs = 0.0
    try:
        for path in paths[:MOST]:
            weighs += (weight := memory(path, reading))
            if weighs > TOGETHER:
                weighs -= weight
                skipped.append(f"{path.name}: too large beside the others; send it by itself")
                continue
            try:
                read.append((path.name, read_cell(path, reading)))
            except DataFault as error:
                skipped.append(str(error).replace(str(path), path.name))
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    document = predictor.bundle.document
    rows, found = _rows(predictor, read) if read else ([], {})
    return _TEMPLATES.get_template("answer.html.j2").render(
        use=document["use"],
        marks=document["marks"],
        told=f"Of {len(places)} images the first {MOST} are shown." if len(places) > MOST else "",
        rows=rows,
        maps=list(found),
        neighbours=predictor.references is not None,
        skipped=skipped,
    )


def _rows(
    predictor: TorchPredictor, read: Sequence[tuple[str, Cell]]
) -> tuple[list[dict[str, Any]], Maps]:
    pixels = [cell.pixels for _, cell in read]
    table = predictor.predict(pixels)
    try:
        seen, found = maps(predictor, pixels, (table["label"] == "ALL").to_numpy())
    except LeukoclsError:  # such as a transformer's, which have none
        seen, found = np.empty(0), {}
    nearest = predictor.nearest(pixels, NEIGHBOURS)
    rows = [
        {
            "cell": name,
            "picture": as_jpeg(around_cell(cell.pixels)),
            "maps": {kind: as_jpeg(overlaid(seen[k], one[k])) for kind, one in found.items()},
            "prob": f"{table['prob'][k]:.2f}",
            "label": table["label"][k],
            "remarks": _remarks(table.iloc[k], cell),
            "nearest": nearest[k],
        }
        for k, (name, cell) in enumerate(read)
    ]
    return rows, found


def _remarks(row: Any, cell: Cell) -> list[str]:
    about = {
        "shows more than a cell on black, which the networks never saw": cell.background,
        "cut out of its background": cell.segmented,
        "a JPEG, whose artefacts the networks may never have seen": cell.lossy,
        "grey, of 16 bits or with alpha, and made 8-bit RGB": cell.converted,
    }
    return [*remarks(row), *(remark for remark, holds in about.items() if holds)]


def page(predictor: TorchPredictor, reading: Reading) -> gradio.Blocks:
    """The page, not yet served."""
    document = predictor.bundle.document
    about = [f"**{document['use'].capitalize()}.** Networks trained by leukocls, of the bundle"
             f" `{predictor.bundle.place.name}`.",
             *(f"**{mark}**: {MEANINGS[mark]}." for mark in document["marks"])]  # fmt: skip
    size = f"{predictor.side} × {predictor.side} pixels, " if predictor.side else ""
    label = f"Images ({', '.join(sorted(SUFFIXES))}; {size}one cell on black)"
    # Uploads that nobody asks about are removed as well, after ten minutes.
    with gradio.Blocks(title="leukocls", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gradio.Markdown("\n\n".join(["# leukocls", *about]))
        files = gradio.File(
            file_count="multiple", file_types=sorted(SUFFIXES), type="filepath", label=label
        )
        found = gradio.HTML(label="Predictions")
        files.upload(
            lambda places: (None, answer(predictor, places, reading)),
            inputs=files,
            outputs=[files, found],
            api_name="predict",
        )
    return blocks


def serve(
    predictor: TorchPredictor, reading: Reading, host: str, port: int, folder: Path
) -> gradio.Blocks:
    """Start to serve the page, on a thread of its own.

    Args:
        folder: an empty one, where uploads lie until they are answered.

    Raises:
        LeukoclsError: the port is taken, or the address is none of this machine.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # gradio asks its own page whether it is there, which a proxy would not know.
    direct = filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", host])
    os.environ["NO_PROXY"] = ",".join(direct)
    blocks = page(predictor, reading)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=LARGEST, css=CSS, theme=theme, footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise LeukoclsError(
            f"--host {host} --port {port}: cannot be listened on; choose a port that no other"
            " program has, or an address of this machine."
        ) from error
    print(f"{predictor.bundle.document['use'].upper()}\n{blocks.local_url} (Ctrl-C ends it)")
    return blocks
