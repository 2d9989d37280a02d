"""Draws docs/cells.png: embedded cells, and one of them as the network sees it in training.

python docs/picture.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from leukocls.data.augment import Augmentation
from leukocls.synthetic.tree import SyntheticSpec, draw_cells, render

SIDE, SHOWN, COLUMNS = 300, 150, 6


def crop(image: np.ndarray) -> np.ndarray:
    """The central 300 pixels."""
    margin = (image.shape[0] - SIDE) // 2
    return image[margin : margin + SIDE, margin : margin + SIDE]


def main() -> None:
    """Write the picture beside this file."""
    cells = [cell for cell in draw_cells(SyntheticSpec()) if cell.part == "fold_0"]
    rows = []
    for label, name in ((1, "ALL"), (0, "HEM")):
        # Six subjects, so that each shows its own stain.
        of_label = {cell.subject: cell for cell in cells if cell.label == label}
        chosen = sorted(of_label.values(), key=lambda cell: cell.severity)[:COLUMNS]
        rows.append((name, [crop(render(cell)) for cell in chosen]))
    augment = Augmentation(0.5, 0.5, 180, 0.2)
    image = (
        torch.from_numpy(rows[0][1][0].copy()).permute(2, 0, 1)[None].float().expand(6, -1, -1, -1)
    )
    warped = augment(image, augment.transforms(seed=0, epoch=0, cells=COLUMNS, size=SIDE))
    rows.append(("augmented", list(warped.permute(0, 2, 3, 1).byte().numpy())))

    margin, gap = 100, 6
    width, height = margin + COLUMNS * (SHOWN + gap), len(rows) * (SHOWN + gap) + 24
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for y, (name, images) in enumerate(rows):
        top = y * (SHOWN + gap)
        draw.text((6, top + SHOWN // 2 - 8), name, "black", font)
        for x, one in enumerate(images):
            small = Image.fromarray(one).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            sheet.paste(small, (margin + x * (SHOWN + gap), top))
    note = "SYNTHETIC cells of six ALL and six HEM subjects; the first one augmented six times"
    draw.text((6, height - 21), note, "black", font)
    sheet.quantize(128).save(Path(__file__).with_name("cells.png"), optimize=True)


if __name__ == "__main__":
    main()
