"""first_look: which sectors begin a magic, and reading a file while asking that. Knows no format: magics come as a
table made from the modules' signatures (sweeper/table.py), whose arrays ext/first_look.h describes.

LookTable checks its arrays once and keeps them; `look` and `read_and_look` run without the GIL.
Reference: tests/reference/first_look.py
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t

cdef extern from "cpu.h":
    int path_is_here(int path) nogil

cdef extern from "first_look.h":
    ctypedef struct look_table:
        int gates, layers, probes, magics
        const int32_t *line
        const uint16_t *pattern
        const uint16_t *mask
        const uint16_t *idle
        const int32_t *probe
        const uint8_t *probe_bits
        const int32_t *heads
        const uint16_t *head
        const int32_t *first
        const int32_t *next
        const uint8_t *magic
        const int32_t *room
        const int64_t *also_at
        const int32_t *also_room
        const uint8_t *also_mask
        const uint8_t *also_value
    # (table, buf, filled, sector, end, hit_sector, hit_magic, cap) -> hits
    ctypedef int64_t (*look_t)(const look_table *, const uint8_t *, int64_t, int64_t *, int64_t, int64_t *, int32_t *,
                               int64_t) noexcept nogil
    look_t look_of(int path) nogil
    int64_t judge_again(const look_table *, const uint8_t *, int64_t, int64_t, int64_t *, int32_t *, int64_t) nogil

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buf, size_t count, int64_t offset)


cdef class LookTable:
    """The arrays of a look_table, held and checked. `path`: which instructions to use (cpu.PATHS)."""

    cdef look_table table
    cdef look_t look
    cdef readonly int magics
    cdef int64_t reach      # bytes from a sector's start to the end of the furthest second field
    cdef tuple keep

    def __init__(self, int gates, const int32_t[::1] line, const uint16_t[:, ::1] pattern,
                 const uint16_t[:, ::1] mask, const uint16_t[:, ::1] idle,
                 const int32_t[::1] probe, const uint8_t[:, ::1] probe_bits, const int32_t[::1] heads,
                 const uint16_t[::1] head, const int32_t[::1] first, const int32_t[::1] next_,
                 const uint8_t[:, ::1] magic, const int32_t[::1] room, const int64_t[::1] also_at,
                 const int32_t[::1] also_room, const uint8_t[:, ::1] also_mask, const uint8_t[:, ::1] also_value,
                 int path):
        cdef Py_ssize_t layers = line.shape[0], probes = probe.shape[0]
        cdef Py_ssize_t magics = room.shape[0], k, m, steps
        if gates < 0 or gates > probes:
            raise ValueError(f"{gates} of {probes} probes cannot be gates")
        if not (pattern.shape[0] == mask.shape[0] == idle.shape[0] == layers
                and pattern.shape[1] == mask.shape[1] == idle.shape[1] == 32):
            raise ValueError("pattern, mask and idle must be uint16[l, 32] for l layers")
        if probe_bits.shape[0] != probes or probe_bits.shape[1] != 8192:
            raise ValueError("probe_bits must be uint8[k, 8192] for k probes")
        if heads.shape[0] != probes + 1 or heads[0] != 0 or heads[probes] != head.shape[0]:
            raise ValueError("heads must be int32[k + 1] for k probes, from 0 to the number of heads")
        if first.shape[0] != head.shape[0]:
            raise ValueError("head and first must have one length")
        if not (next_.shape[0] == also_at.shape[0] == also_room.shape[0] == magics):
            raise ValueError("next_, room, also_at and also_room must have one length")
        if not (magic.shape[0] == also_mask.shape[0] == also_value.shape[0] == magics
                and magic.shape[1] == also_mask.shape[1] == also_value.shape[1] == 16):
            raise ValueError("magic, also_mask and also_value must be uint8[m, 16] for m magics")
        for k in range(probes):
            if probe[k] < 0 or probe[k] > 510:
                raise ValueError(f"place {probe[k]} does not lie inside a sector")
        for k in range(layers):
            if line[k] < 0 or line[k] >= 512 or line[k] % 64:
                raise ValueError(f"line {line[k]} is no cache line of a sector")
        for m in range(magics):
            if not (2 <= room[m] <= 16 and 0 <= also_room[m] <= 16 and -(1 << 40) < also_at[m] < 1 << 40):
                raise ValueError(f"magic {m} has length {room[m]}, second field {also_room[m]} at {also_at[m]}")
            self.reach = max(self.reach, also_at[m] + also_room[m])
            k, steps = m, 0
            while k >= 0:   # every chain ends: it has no more steps than there are magics
                if k >= magics or steps > magics or next_[k] < -1:
                    raise ValueError(f"the chain of magic {m} does not end")
                k, steps = next_[k], steps + 1
        for k in range(probes):
            if heads[k] > heads[k + 1]:
                raise ValueError("heads must not fall")
        for k in range(first.shape[0]):
            if first[k] < 0 or first[k] >= magics:
                raise ValueError(f"first[{k}] is no magic")
        if not path_is_here(path):
            raise ValueError(f"path {path} cannot be run here")
        self.keep = (line, pattern, mask, idle, probe, probe_bits, heads, head, first, next_, magic,
                     room, also_at, also_room, also_mask, also_value)
        self.look = look_of(path)
        self.magics = magics
        t = &self.table
        t.gates, t.layers, t.probes, t.magics = gates, layers, probes, magics
        if layers:
            t.line, t.pattern, t.mask, t.idle = &line[0], &pattern[0, 0], &mask[0, 0], &idle[0, 0]
        if probes:
            t.probe, t.probe_bits, t.heads = &probe[0], &probe_bits[0, 0], &heads[0]
        if head.shape[0]:
            t.head, t.first = &head[0], &first[0]
        if magics:
            t.next, t.magic, t.room, t.also_at, t.also_room = (&next_[0], &magic[0, 0], &room[0], &also_at[0],
                                                               &also_room[0])
            t.also_mask, t.also_value = &also_mask[0, 0], &also_value[0, 0]


cdef int check(LookTable table, int64_t[::1] hit_sector, int32_t[::1] hit_magic) except -1:
    if hit_magic.shape[0] != hit_sector.shape[0] or hit_sector.shape[0] < max(1, table.magics):
        raise ValueError("hit_sector and hit_magic must have one length, at least the number of magics")
    return 0


cpdef Py_ssize_t first_look(LookTable table, const uint8_t[::1] buf, int64_t[::1] hit_sector, int32_t[::1] hit_magic,
                            int64_t[::1] resume) except -1:
    """The magics of buf's sectors; a tail shorter than a sector is not looked at.

    in   resume[0]: the sector to begin with
    out  hit_sector, hit_magic: sector numbers, rising, and which magic; resume[0]: the sector to go on with when the
         result was full, else the number of sectors
    returns the number of hits.
    """
    cdef int64_t sectors = buf.shape[0] // 512, hits
    check(table, hit_sector, hit_magic)
    if resume.shape[0] != 1 or resume[0] < 0:
        raise ValueError("resume must be one sector number")
    if resume[0] >= sectors:
        return 0
    with nogil:     # in bounds: 0 <= resume < sectors and 512 * sectors <= the buffer's length
        hits = table.look(&table.table, &buf[0], buf.shape[0], &resume[0], sectors, &hit_sector[0],
                          &hit_magic[0], hit_sector.shape[0])
    return hits


cpdef Py_ssize_t read_and_look(LookTable table, int fd, int64_t[::1] state, uint8_t[::1] buf, int64_t piece,
                               int64_t[::1] hit_sector, int32_t[::1] hit_magic) except -1:
    """Reads a file on and looks, piece by piece while the piece is in the cache, until there is something to do.

    A piece without hits is overwritten by the next; from the first one with hits on the buffer is filled up, so that
    who confirms has as many at once as it holds, and what lies behind them. A hit whose second field lies in the next
    piece is none when that has been read and the field is not there: such a piece is overwritten too.

    in   piece: bytes a read, a multiple of 512, at most the buffer's length
         state int64[5]: 0 image offset of buf[0]; 1 bytes filled; 2 sectors of them looked at; 3 image offset to end
         at; 4 is written: 0, or the errno of a read that failed at state[0] + state[1] (a short read counts as EIO)
    out  the same, and hits as in first_look, sector numbers within buf
    returns the number of hits. Call again when they are dealt with: it goes on looking in the buffer, then reading;
    when all that is in the buffer was looked at, it will be overwritten. Done when it returns 0 without error.
    """
    cdef int64_t hits = 0, want, upto, at, before
    cdef ssize_t got
    check(table, hit_sector, hit_magic)
    if state.shape[0] != 5 or state[0] < 0 or not 0 <= state[1] <= buf.shape[0] or not 0 <= state[2] * 512 <= state[1]:
        raise ValueError("state does not fit the buffer")
    if piece < 512 or piece % 512 or piece > buf.shape[0]:
        raise ValueError("piece must be whole sectors that fit into the buffer")
    state[4] = 0
    with nogil:     # in bounds: filled + want <= the buffer's length; sectors looked at * 512 <= filled
        while True:
            if state[2] < state[1] // 512:
                # a tail that is no sector belongs to the image's end only: all pieces before it are whole sectors
                hits += table.look(&table.table, &buf[0], state[1], &state[2], state[1] // 512,
                                   &hit_sector[hits], &hit_magic[hits], hit_sector.shape[0] - hits)
                if state[2] < state[1] // 512:
                    break           # the result is full
            at = state[0] + state[1]
            if at >= state[3]:
                break
            if hits and hit_sector.shape[0] - hits < table.magics:
                break               # the next sector might not fit
            if hits == 0:
                state[0], state[1], state[2] = at, 0, 0
            want = min(min(piece, state[3] - at), buf.shape[0] - state[1])
            if want <= 0:
                break               # the buffer is full
            before, upto = state[1], state[1] + want
            while state[1] < upto:
                got = pread(fd, &buf[state[1]], upto - state[1], state[0] + state[1])
                if got < 0 and errno == EINTR:
                    continue
                if got <= 0:
                    state[4] = errno if got < 0 else 5
                    break
                state[1] += got
            if state[4]:
                break
            if hits:    # what lay behind the buffer's end before may be there now
                hits = judge_again(&table.table, &buf[0], state[1], (before - table.reach) // 512, &hit_sector[0],
                                   &hit_magic[0], hits)
    return hits
