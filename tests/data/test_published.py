"""What ships as facts about C-NMC 2019 agrees with itself, with the sample and with the notes."""

import csv
import hashlib

import numpy as np
import pytest
from conftest import SHARED
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from leukocls.data.names import UID
from leukocls.data.published import (
    LABELS_DIGEST,
    MERGED,
    PART_DIGESTS,
    SAME_FINAL,
    SHARED_IMAGES,
    TRAIN_IN_FINAL,
    TRAIN_IN_PRELIM,
    merged_subject,
    published_counts,
    published_parts,
    published_subjects,
)

# RECIPES §1: number of pairs of images of one cell that was stain-normalised and cut out twice.
SHARED_CELLS = {
    ("51", "78"): 180, ("51", "75"): 78, ("H10", "H3"): 35, ("H2", "H5"): 19, ("H2", "H6"): 14,
    ("43", "44"): 11, ("H2", "H7"): 10, ("H2", "H4"): 9, ("17", "20"): 4, ("51", "55"): 4,
    ("H14", "H24"): 2, ("H5", "H6"): 2, ("20", "21"): 2, ("1", "15"): 1, ("1", "17"): 1,
    ("16", "20"): 1,
}  # fmt: skip
FOLDS = ("fold_0", "fold_1", "fold_2")


@pytest.fixture(scope="module")
def train_subjects():
    subjects = published_subjects()
    return sorted({subject for fold in FOLDS for subject in subjects[fold]})


@pytest.fixture(scope="module")
def prelim_subjects():
    return sorted(published_subjects()["prelim"])


def test_merged_subjects_are_the_closure_of_the_shared_cells(train_subjects, prelim_subjects):
    """RECIPES §1: 73 subjects become 59 persons, 39 with ALL and 20 without; 55 is one of them."""
    subjects = [*train_subjects, *prelim_subjects]
    place = {subject: number for number, subject in enumerate(subjects)}
    links = [*SHARED_IMAGES, *SHARED_CELLS]
    pairs = np.array([[place[one], place[other]] for one, other in links])
    shape = (len(place), len(place))
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape)
    number, component = connected_components(graph, directed=False)
    sets = [{s for s in subjects if component[place[s]] == k} for k in range(number)]
    assert {frozenset(group) for group in MERGED} == {frozenset(s) for s in sets if len(s) > 1}
    names = {merged_subject(subject) for subject in train_subjects}
    assert (len(train_subjects), len(names)) == (73, 59)
    assert sum(name.startswith("H") for name in names) == 20
    assert len({merged_subject(subject) for subject in prelim_subjects}) == 28


def test_a_person_is_of_one_class_and_55_alone_is_in_both_parts(train_subjects, prelim_subjects):
    for group in MERGED:
        assert len({subject.startswith("H") for subject in group}) == 1
        assert set(group) <= {*train_subjects, "55"}
        assert {merged_subject(subject) for subject in group} == {"+".join(group)}
        both = {"train", "prelim"} if "55" in group else {"train"}
        assert published_parts("+".join(group)) == both
    assert set(train_subjects).isdisjoint(prelim_subjects)
    assert merged_subject("2") == "2"
    assert published_parts("53") == {"prelim"}


def test_the_images_of_51_that_prelim_and_final_hold_again():
    assert (len(TRAIN_IN_PRELIM), len(TRAIN_IN_FINAL)) == (6, 16)
    for known, most in ((TRAIN_IN_PRELIM, 1_867), (TRAIN_IN_FINAL, 2_586)):
        assert len(set(known.values())) == len(known)
        for copy, first in known.items():
            assert 1 <= int(copy.removesuffix(".bmp")) <= most
            assert UID.fullmatch(first.removesuffix(".bmp"))[1] == "51"


def test_there_are_106_pairs_of_identical_images():
    assert sum(SHARED_IMAGES.values()) + len(SAME_FINAL) == 106


def test_no_subject_shares_more_images_than_it_has():
    of = {}
    for fold in FOLDS:
        of |= {subject: (fold, number) for subject, number in published_subjects()[fold].items()}
    for (one, other), images in SHARED_IMAGES.items():
        assert images <= min(of[one][1], of[other][1]) // (2 if one == other else 1)
    # RECIPES §1 names the folds of each pair.
    folds = {frozenset(pair): {of[subject][0] for subject in pair} for pair in SHARED_IMAGES}
    assert folds[frozenset({"20", "21"})] == {"fold_0", "fold_2"}
    assert folds[frozenset({"51", "75"})] == folds[frozenset({"51", "78"})] == {"fold_1", "fold_2"}
    assert folds[frozenset({"H3", "H10"})] == {"fold_1", "fold_2"}
    assert folds[frozenset({"H2", "H6"})] == {"fold_0", "fold_2"}
    assert folds[frozenset({"H2", "H4"})] == folds[frozenset({"H2", "H5"})] == {"fold_2"}


def test_the_genuine_label_file_has_the_published_digest_and_subjects(sample_root):
    (path,) = sample_root.rglob("*_labels.csv")
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == (
        "3f5d770a51017f242db857e178de5341f294e38fff82c266a1a8d292c9fc3d0d"
    )
    rows = list(csv.DictReader(content.decode().splitlines()))
    lines = sorted(f"{row['new_names']},{row['Patient_ID']},{row['labels']}\n" for row in rows)
    lines = [line.lower() for line in lines]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == LABELS_DIGEST
    counted = {}
    for row in rows:
        subject = row["Patient_ID"].split("_")[1].upper()
        counted[subject] = counted.get(subject, 0) + 1
    assert counted == published_subjects()["prelim"]


def test_digests_are_those_of_the_notes():
    notes = SHARED.parent / "RECIPES.md"
    if not notes.is_file():
        pytest.skip(f"no notes at {notes}")
    lines = notes.read_text(encoding="utf-8").splitlines()
    assert PART_DIGESTS.keys() == published_counts().keys()
    for part, digest in PART_DIGESTS.items():
        assert any(line.strip() == f"- {part} `{digest}`" for line in lines), part
