"""The constants of pydensecrf."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["KernelType", "NormalizationType"]


class KernelType(IntEnum):
    """What of a kernel's precision matrix could be learned; inference is the same with all three."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """Where a kernel is divided by its row sums."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3

    @property
    def short_name(self) -> str:
        """What the rest of the package calls it.

        Example:
            >>> NormalizationType.NORMALIZE_BEFORE.short_name
            'before'
        """
        return ("none", "before", "after", "symmetric")[self]
