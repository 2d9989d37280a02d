"""Predictions of a run that trains: one file for each epoch, joined when the run ends.

A run of many epochs then neither writes all of them at every save nor holds them in memory.
"""

import shutil
from pathlib import Path

import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import PARTS, PERSON
from leukocls.common.errors import DataFault
from leukocls.data.index import Index


class PredictionParts:
    """The predictions of one run, by epoch.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.folder, self.whole = directory / PARTS, directory / "predictions.parquet"
        self._unsaved: dict[int, pd.DataFrame] = {}

    def add(self, epoch: int, frame: pd.DataFrame) -> None:
        """Add a split's predictions of an epoch, in place of those that it has of this split."""
        if epoch in self._unsaved or self._part(epoch).is_file():
            before = self.of(epoch)
            others = before[~before["split"].isin(frame["split"].unique())]
            frame = pd.concat([others, frame]) if len(others) else frame
        self._unsaved[epoch] = frame

    def save(self) -> None:
        """Write what was added since the last save.

        Raises:
            OSError: it cannot be written; the files of other epochs are unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for epoch, frame in self._unsaved.items():
            predictions.write(self._part(epoch), frame)
        self._unsaved.clear()

    def of(self, epoch: int) -> pd.DataFrame:
        """The predictions of an epoch.

        Raises:
            LeukoclsError: its file is missing or damaged.
        """
        unsaved = self._unsaved.get(epoch)
        return predictions.read(self._part(epoch)) if unsaved is None else unsaved

    def reload(self, epoch: int, index: Index) -> None:
        """Keep the epochs up to `epoch`, of a run that stopped.

        Args:
            index: names the persons, which versions before 0.2 did not.

        Raises:
            LeukoclsError: damaged predictions.
            DataFault: predictions of an epoch are missing.
        """
        if self.whole.is_file():  # it was over already, or a version before 0.2 made it
            frame = predictions.read(self.whole)
            if PERSON not in frame:
                group = index.table.set_index("cell")["group"]
                frame = frame.assign(person=frame["cell"].map(group))
            self._unsaved = predictions.by_epoch(frame)
            self.save()
            self.whole.unlink()
        for path in self._parts():
            if path.name > self._part(epoch).name:
                path.unlink()
        self._check_parts(epoch)

    def join(self) -> None:
        """Write predictions.parquet from the parts, which are removed.

        Raises:
            LeukoclsError: a damaged part.
            DataFault: predictions of an epoch are missing.
            OSError: it cannot be written; the parts are as they were.
        """
        self.save()
        self._check_parts(len(self._parts()) - 1)
        predictions.write(self.whole, pd.concat(map(predictions.read, self._parts())))
        shutil.rmtree(self.folder)

    def _check_parts(self, last: int) -> None:
        """Refuse to go on without the parts of all epochs up to `last`."""
        for number in range(last + 1):
            if not self._part(number).is_file():
                raise DataFault(
                    f"{self._part(number)}: the predictions of this epoch are missing; force=true"
                    " starts the run again"
                )

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("epoch*.parquet"))

    def _part(self, epoch: int) -> Path:
        return self.folder / f"epoch{epoch:06d}.parquet"
