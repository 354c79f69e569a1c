"""every_byte: where magics begin at any byte, structures that begin on a sector left out (first_look finds those).

BytesTable checks its arrays once and keeps them (ext/every_byte.h describes them); `every_byte` runs without the GIL.
Reference: tests/reference/every_byte.py
"""

from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from "cpu.h":
    int path_is_here(int path) nogil

cdef extern from "every_byte.h":
    ctypedef struct bytes_table:
        const uint8_t *low
        const uint8_t *high
        const uint8_t *six
        const uint8_t *begins
        int magics
        const uint8_t *magic
        const int32_t *room
        const int64_t *at
        const int64_t *also_at
        const int32_t *also_room
        const uint8_t *also_mask
        const uint8_t *also_value
    # (table, buf, filled, image_at, place, end, hit_at, hit_magic, cap) -> hits
    ctypedef int64_t (*search_t)(const bytes_table *, const uint8_t *, int64_t, int64_t, int64_t *, int64_t, int64_t *,
                                 int32_t *, int64_t) noexcept nogil
    search_t search_of(int path) nogil


cdef class BytesTable:
    """The arrays of a bytes_table, held and checked. `path`: which instructions to use (cpu.PATHS)."""

    cdef bytes_table table
    cdef search_t search
    cdef readonly int magics
    cdef tuple keep

    def __init__(self, const uint8_t[:, ::1] low, const uint8_t[:, ::1] high, const uint8_t[:, ::1] six,
                 const uint8_t[::1] begins, const uint8_t[:, ::1] magic, const int32_t[::1] room, const int64_t[::1] at,
                 const int64_t[::1] also_at, const int32_t[::1] also_room, const uint8_t[:, ::1] also_mask,
                 const uint8_t[:, ::1] also_value, int path):
        cdef Py_ssize_t magics = room.shape[0], m
        if not (low.shape[0] == high.shape[0] == 4 and low.shape[1] == high.shape[1] == 16):
            raise ValueError("low and high must be uint8[4, 16]")
        if six.shape[0] != 4 or six.shape[1] != 64:
            raise ValueError("six must be uint8[4, 64]")
        if begins.shape[0] != 8192:
            raise ValueError(f"begins has {begins.shape[0]} bytes, needs 8192")
        if not (at.shape[0] == also_at.shape[0] == also_room.shape[0] == magics):
            raise ValueError("room, at, also_at and also_room must have one length")
        if not (magic.shape[0] == also_mask.shape[0] == also_value.shape[0] == magics
                and magic.shape[1] == also_mask.shape[1] == also_value.shape[1] == 16):
            raise ValueError("magic, also_mask and also_value must be uint8[m, 16] for m magics")
        for m in range(magics):
            if not (4 <= room[m] <= 16 and 0 <= also_room[m] <= 16 and 0 <= at[m] < 1 << 40
                    and 0 <= also_at[m] < 1 << 40):
                raise ValueError(f"magic {m} at {at[m]} has length {room[m]}, second field {also_room[m]}")
        if not path_is_here(path):
            raise ValueError(f"path {path} cannot be run here")
        self.keep = (low, high, six, begins, magic, room, at, also_at, also_room, also_mask, also_value)
        self.search = search_of(path)
        self.magics = magics
        t = &self.table
        t.low, t.high, t.six, t.begins, t.magics = &low[0, 0], &high[0, 0], &six[0, 0], &begins[0], magics
        if magics:
            t.magic, t.room, t.at, t.also_at, t.also_room = (&magic[0, 0], &room[0], &at[0], &also_at[0],
                                                             &also_room[0])
            t.also_mask, t.also_value = &also_mask[0, 0], &also_value[0, 0]


cpdef Py_ssize_t every_byte(BytesTable table, const uint8_t[::1] buf, int64_t image_at, int64_t end,
                            int64_t[::1] hit_at, int32_t[::1] hit_magic, int64_t[::1] resume) except -1:
    """The magics that begin in buf[resume[0] .. end); they may reach up to the end of buf.

    in   image_at: image offset of buf[0]; resume[0]: the byte to begin with
    out  hit_at, hit_magic: places in buf, rising, and which magic; resume[0]: the byte to go on with when the result
         was full, else `end`
    returns the number of hits.
    """
    cdef int64_t hits
    if hit_magic.shape[0] != hit_at.shape[0] or hit_at.shape[0] < max(1, table.magics):
        raise ValueError("hit_at and hit_magic must have one length, at least the number of magics")
    if resume.shape[0] != 1 or resume[0] < 0 or not 0 <= end <= buf.shape[0] or image_at < 0:
        raise ValueError("resume must be one place, and end must lie in the buffer")
    if resume[0] >= end:
        return 0
    with nogil:     # in bounds: 0 <= resume < end <= the buffer's length
        hits = table.search(&table.table, &buf[0], buf.shape[0], image_at, &resume[0], end, &hit_at[0], &hit_magic[0],
                            hit_at.shape[0])
    return hits
