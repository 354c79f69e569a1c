"""What a guest tells that is read through a map which may be wrong."""

from __future__ import annotations

import logging

import pytest

from vmcarve.assemble.asked import asked


def test_a_guest_that_breaks_its_reader_tells_nothing_and_leaves_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever looks for a fault of a reader finds where it broke in the log; an examiner is not bothered."""
    def broken() -> int:
        raise IndexError("row 7")

    with caplog.at_level(logging.DEBUG):
        assert asked(broken, 0) == 0
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and record.exc_info is not None and "row 7" in str(record.exc_info[1])
    assert asked(lambda: 5, 0) == 5
