"""Draws docs/cells.png: synthetic cells, and one of them as the network sees it in training.

python docs/picture.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from leukocls.data.augment import Augmentation
from leukocls.synthetic.tree import SyntheticSpec, draw_cells, render

SIDE, SHOWN, COLUMNS = 300, 150, 6
MARGIN, GAP, NOTE = 122, 6, 30
BACKGROUND, TEXT = "white", (36, 41, 47)


def crop(image: np.ndarray) -> np.ndarray:
    """The central 300 pixels."""
    margin = (image.shape[0] - SIDE) // 2
    return image[margin : margin + SIDE, margin : margin + SIDE]


def rows() -> list[tuple[str, list[np.ndarray]]]:
    """A name and COLUMNS images for each row of the picture."""
    cells = [cell for cell in draw_cells(SyntheticSpec()) if cell.part == "fold_0"]
    drawn = []
    for label, name in ((1, "leukemic\n(ALL)"), (0, "normal\n(HEM)")):
        # Six subjects, so that each shows its own stain.
        of_label = {cell.subject: cell for cell in cells if cell.label == label}
        chosen = sorted(of_label.values(), key=lambda cell: cell.severity)[:COLUMNS]
        drawn.append((name, [crop(render(cell)) for cell in chosen]))
    augment = Augmentation(0.5, 0.5, 180, 0.2)
    first = torch.from_numpy(drawn[0][1][0].copy()).permute(2, 0, 1)[None].float()
    transforms = augment.transforms(seed=0, epoch=0, cells=COLUMNS, size=SIDE)
    warped = augment(first.expand(COLUMNS, -1, -1, -1), transforms)
    images = list(warped.permute(0, 2, 3, 1).byte().numpy())
    return [*drawn, ("the first one,\naugmented", images)]


def main() -> None:
    """Write the picture beside this file."""
    drawn = rows()
    width = MARGIN + COLUMNS * (SHOWN + GAP) - GAP
    height = len(drawn) * (SHOWN + GAP) + NOTE
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for y, (name, images) in enumerate(drawn):
        top = y * (SHOWN + GAP)
        draw.multiline_text((0, top + SHOWN // 2), name, TEXT, font, anchor="lm", spacing=6)
        for x, image in enumerate(images):
            small = Image.fromarray(image).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            sheet.paste(small, (MARGIN + x * (SHOWN + GAP), top))
    note = "SYNTHETIC cells of twelve subjects. Augmentation turns, mirrors and moves a cell."
    draw.text((MARGIN, height - NOTE // 2), note, TEXT, font, anchor="lm")
    sheet.quantize(128).save(Path(__file__).with_name("cells.png"), optimize=True)


if __name__ == "__main__":
    main()
