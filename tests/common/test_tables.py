"""Tables as text."""

from leukocls.common.tables import aligned

ROWS = [["run", "cause"], ["a" * 30, "one two three"], ["b", "four"]]


def test_a_table_keeps_its_width_and_loses_nothing() -> None:
    for width in (20, 30, 40):
        lines = aligned(ROWS, width).split("\n")
        assert max(map(len, lines)) <= width
        assert sorted("".join(lines).replace(" ", "")) == sorted(
            "".join(map("".join, ROWS)).replace(" ", "")
        )


def test_a_table_that_fits_is_as_without_a_limit() -> None:
    indented = [["  a", "b"], ["  c", "d"]]
    assert aligned(indented, 80) == aligned(indented) == "  a  b\n  c  d"
