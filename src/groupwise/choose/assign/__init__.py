"""Which channels of a dense layer make a group: the balanced partition that keeps most of the weight."""

from groupwise.choose.assign.search import Assignment, assign

__all__ = ["Assignment", "assign"]
