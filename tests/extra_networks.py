"""Networks of the tests beside those of leukocls.models, in every process forked for a test."""

from pathlib import Path

import leukocls.models

FOLDER = Path(__file__).parent / "networks"

leukocls.models.__path__.append(str(FOLDER))
