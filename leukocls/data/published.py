"""Facts about C-NMC 2019 as published: counts, digests, and images that it holds more than once.

Counts: Gupta & Gupta, TCIA 2019, doi 10.7937/tcia.2019.dc64i46r. Digests and duplicates were
measured on a genuine copy.
"""

import functools
import hashlib
from collections.abc import Iterable
from importlib import resources

import pandas as pd

from leukocls.data.names import subject_key, subject_of

SIDE, FINAL_SIDE = 450, 600  # px; final images are larger
MANIFEST = "synthetic.json"  # the file that marks a data tree as SYNTHETIC
FINAL_CELLS = 2586  # the labels and subjects of final are not published

# sha256 over the sorted lines `{sha256 of the file}  {file name}\n` of a part.
PART_DIGESTS = {
    "fold_0": "54f11bffc1ea6d9821c03fcb48a47d3acff730e1b162bc63f4daaa1efb02a993",
    "fold_1": "507e074547c1a35e90e0223f6b680bc24d68e7cf159a4247dd8af29205d986b0",
    "fold_2": "bba55f0ee26eff0e22f766b88baa5fe4bd2836e9db2e8a4bbd8cb5d9934c5e05",
    "prelim": "015dbadc945fe2282f853ba30b03605a060f4477ee50ad46b5f2129f0b343ff8",
    "final": "7b792dafe865afeb937ecc75da8139dab174657b98413bf6fbe181471e8909f9",
}
# `labels_digest` of the published label file; line ends and the order of rows do not matter.
LABELS_DIGEST = "eb0f51381b19b50f6964ac1ebd1ce77513f48fedd2f170b59b1cdeb9d779ceb6"

# Subjects that share cells are one person in every split: the transitive closure of the pairs that
# docs/splits-and-leakage.md lists.
MERGED = (
    ("1", "15", "16", "17", "20", "21"),
    ("43", "44"),
    ("51", "55", "75", "78"),
    ("H2", "H4", "H5", "H6", "H7"),
    ("H3", "H10"),
    ("H14", "H24"),
)
# The number of byte-identical images that two subjects share, 104 in all. Two more pairs of images
# are in final (SAME_FINAL).
SHARED_IMAGES = {
    ("20", "21"): 71,
    ("51", "75"): 10,
    ("51", "78"): 11,
    ("H10", "H3"): 1,
    ("H6", "H2"): 1,
    ("H2", "H4"): 3,
    ("H2", "H5"): 2,
    ("H10", "H10"): 5,
}
SAME_FINAL = (("972.bmp", "2217.bmp"), ("581.bmp", "914.bmp"))
# Images of train that prelim and final hold again in other files: same pixels, other header.
TRAIN_IN_PRELIM = {
    "1359.bmp": "UID_51_134_2_all.bmp", "944.bmp": "UID_51_49_1_all.bmp",
    "660.bmp": "UID_51_49_3_all.bmp", "1023.bmp": "UID_51_59_1_all.bmp",
    "59.bmp": "UID_51_59_2_all.bmp", "385.bmp": "UID_51_74_1_all.bmp",
}  # fmt: skip
TRAIN_IN_FINAL = {
    "1682.bmp": "UID_51_12_1_all.bmp", "1603.bmp": "UID_51_12_2_all.bmp",
    "1141.bmp": "UID_51_131_1_all.bmp", "1673.bmp": "UID_51_147_3_all.bmp",
    "1.bmp": "UID_51_147_4_all.bmp", "1563.bmp": "UID_51_147_6_all.bmp",
    "2522.bmp": "UID_51_47_2_all.bmp", "1374.bmp": "UID_51_47_5_all.bmp",
    "1857.bmp": "UID_51_47_6_all.bmp", "1132.bmp": "UID_51_82_1_all.bmp",
    "2246.bmp": "UID_51_82_3_all.bmp", "575.bmp": "UID_51_82_4_all.bmp",
    "1796.bmp": "UID_51_82_5_all.bmp", "1322.bmp": "UID_51_8_8_all.bmp",
    "397.bmp": "UID_51_8_9_all.bmp", "2413.bmp": "UID_51_97_6_all.bmp",
}  # fmt: skip


def labels_digest(rows: Iterable[tuple[str, str, int]]) -> str:
    """sha256 over the sorted lines `{new_names},{Patient_ID},{labels}\\n`, in lower case."""
    lines = sorted(f"{name},{original},{label}\n".casefold() for name, original, label in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def subject_counts() -> pd.DataFrame:
    """Published number of cells per subject: columns split, fold, label, subject, n_images."""
    with resources.files("leukocls.data").joinpath("cnmc_subject_counts.csv").open() as stream:
        return pd.read_csv(stream)


def published_subjects() -> dict[str, dict[str, int]]:
    """Published number of cells of each subject, by part: fold_0, fold_1, fold_2, prelim."""
    counts = subject_counts()
    fold = counts["fold"].map(lambda f: f"fold_{int(f)}", na_action="ignore")
    part = fold.where(counts["split"] == "train", counts["split"])
    return {
        str(name): {str(s): int(n) for s, n in zip(rows["subject"], rows["n_images"], strict=True)}
        for name, rows in counts.groupby(part)
    }


def published_counts() -> dict[str, int]:
    """Published number of cells in each part."""
    counts = {part: sum(subjects.values()) for part, subjects in published_subjects().items()}
    return counts | {"final": FINAL_CELLS}


@functools.lru_cache(maxsize=1 << 15)  # the same cells come again with every run and epoch
def person_of(cell: str, subject: str) -> str:
    """The person that a cell is from: its subject in one spelling, "" if unknown.

    Subjects of cells with C-NMC's names are merged by the cells that C-NMC holds more than once.
    """
    key = subject_key(subject)
    return merged_subject(key) if subject_of(cell) else key


def merged_subject(subject: str) -> str:
    """The person of a subject: "43+44" for 43 and for 44; its own name for most others."""
    return next(("+".join(group) for group in MERGED if subject in group), subject)


def published_parts(person: str) -> set[str]:
    """The parts, train and prelim, in which C-NMC as published has cells of a person."""
    subjects = person.split("+")
    return {
        "prelim" if part == "prelim" else "train"
        for part, counts in published_subjects().items()
        if not counts.keys().isdisjoint(subjects)
    }
