"""leukocls: leukemic (ALL) against normal (HEM) cells, and whether the number can be believed."""

__version__ = "0.2.0"
