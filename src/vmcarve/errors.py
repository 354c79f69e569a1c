"""Every failure that vmcarve states: one family, and each one carries the place where it happened."""

from __future__ import annotations


class VmcarveError(Exception):
    """A stated failure: one line of plain words, with the place where it was met.

    source: image or file name; offset: byte offset in it; field: the name of the value that was refused, as the
    format's specification spells it; value: what was read; bound: what would have been accepted.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        offset: int | None = None,
        field: str | None = None,
        value: object = None,
        bound: object = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.offset = offset
        self.field = field
        self.value = value
        self.bound = bound

    def __str__(self) -> str:
        parts = [self.source] if self.source else []
        head = self.message
        if self.offset is not None:
            head += f" at offset {self.offset:#x}"
        if self.field is not None:
            head += f": {self.field} is {_show(self.value)}"
            if self.bound is not None:
                head += f" (must be {_show(self.bound)})"
        return ": ".join([*parts, head])


class UsageError(VmcarveError):
    """The call itself is wrong: an option, a path that is a directory, a case folder in use (exit status 2)."""


class Unreadable(VmcarveError):
    """The source could not be read at all. Single bad sectors are not errors: they become ranges."""


class Damaged(VmcarveError):
    """A structure is not what its magic promises. Raised by `Format.open`; the assembler goes on without it."""


def _show(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:#x}" if abs(value) > 9999 else str(value)
