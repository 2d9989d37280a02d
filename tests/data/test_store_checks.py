"""A store that was damaged after it was packed is refused, whatever its name says."""

from pathlib import Path

import numpy as np
import pytest

from leukocls.common.errors import DataFault
from leukocls.data.store import data_digest, open_store, store_path
from leukocls.data.verify import checked_index


@pytest.fixture
def packed(small_tree: Path, tmp_path: Path):
    index = checked_index(small_tree, cache=tmp_path).only(("train", "prelim"))
    digest = data_digest(index)

    def again() -> np.memmap:
        return open_store(index, digest, tmp_path, 300, 24)

    again()
    return store_path(digest, tmp_path, 300, 24), again


def test_a_flipped_byte_is_refused_and_a_new_store_is_packed_once_it_is_removed(packed) -> None:
    path, again = packed
    before = np.array(again())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFault) as fault:
        again()
    assert fault.value.args[0].path == path
    path.unlink()
    np.testing.assert_array_equal(again(), before)


@pytest.mark.parametrize("kept", [0, 40, -1])
def test_a_short_store_is_refused(packed, kept: int) -> None:
    path, again = packed
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataFault):
        again()


def test_a_store_without_checksums_is_packed_again(packed) -> None:
    path, again = packed
    before = np.array(again())
    path.with_suffix(".crc32").unlink()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(again(), before)
