"""unit_chances: forward and backward sums over all orders of a container's units (see assemble/unit_order.py).

in   weight float64[n, m]: log of what speaks for unit i being the guest's unit j
     hole float64[m]: log of what speaks for unit j being left out by a rising order; empty: any order
     joined float64[n - 1]: log of what speaks for unit i + 1 being the guest's next behind unit i
     beside uint8[m - 1]: whether unit j + 1 follows unit j in the guest
     follows, none, jump: chances that a unit is the guest's next, that it is none, that it is any other
     near, stray: of any order: `jump` falls by `near` from place to place to both sides of the next one, but for its
     share `stray`, which goes anywhere; near 0: all of it does
out  chance float64[n, m]: of each place. power int32[n, m] is scratch.
returns the log of the sum over all orders, and how many units of the file but the last are expected to be followed by
the guest's next. All arrays are borrowed. n * m steps of some twenty sums and products, and two exponentials; with
`near` half as many more.

Sums reach over more than a double's range: what contradicts itself is as unlikely as there are units. A number is
value * 2 ** (256 * power) with a value in [2 ** -128, 2 ** 128), or 0 with the power NOTHING.
Reference: tests/reference/unit_chances.py
"""

from libc.math cimport exp, floor, fmin, log
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc

cdef double LARGE = 2.0 ** 128, SMALL = 2.0 ** -128, UP = 2.0 ** 256, DOWN = 2.0 ** -256
cdef double STEP = 256 * 0.6931471805599453
cdef int64_t NOTHING = -(1 << 29)
cdef double NEVER = -1e8  # logs below are of 0


cdef struct Wide:
    double value
    int64_t power


cdef inline Wide normal(double value, int64_t power) noexcept nogil:
    cdef Wide out
    out.value = value
    out.power = power
    if value >= LARGE:
        out.value = value * DOWN
        out.power = power + 1
    elif value < SMALL:
        if value == 0.0:
            out.power = NOTHING
        else:
            out.value = value * UP
            out.power = power - 1
    return out


cdef inline Wide times(Wide a, Wide b) noexcept nogil:
    return normal(a.value * b.value, a.power + b.power)


cdef inline Wide scaled(Wide a, double by) noexcept nogil:
    # by in [2 ** -128, 2 ** 128), or 0
    return normal(a.value * by, a.power)


cdef inline Wide plus(Wide a, Wide b) noexcept nogil:
    if a.power == b.power:
        return normal(a.value + b.value, a.power)
    if a.power == b.power + 1:
        return normal(a.value + b.value * DOWN, a.power)
    if b.power == a.power + 1:
        return normal(b.value + a.value * DOWN, b.power)
    return a if a.power > b.power else b  # the other is less than 2 ** -256 of it


cdef inline Wide exponential(double x) noexcept nogil:
    cdef Wide out
    cdef double k
    if x == 0.0:
        out.value = 1.0
        out.power = 0
        return out
    if x < NEVER:
        out.value = 0.0
        out.power = NOTHING
        return out
    k = floor(x / STEP + 0.5)
    return normal(exp(x - k * STEP), <int64_t> k)


cdef inline double share(Wide a, Wide b, Wide whole) noexcept nogil:
    # a * b / whole, at most 1
    cdef Wide both = times(a, b)
    cdef int64_t power = both.power - whole.power
    if power < -3 or both.value == 0.0:
        return 0.0
    if power > 3:
        return 1.0
    if power == 0:
        return fmin(both.value / whole.value, 1.0)
    return fmin(exp(log(both.value / whole.value) + power * STEP), 1.0)


def unit_chances(const double[:, ::1] weight, const double[::1] hole, const double[::1] joined,
                 const uint8_t[::1] beside, double follows, double none, double jump, double near, double stray,
                 double[:, ::1] chance, int32_t[:, ::1] power):
    cdef Py_ssize_t n = weight.shape[0], m = weight.shape[1], i, j
    cdef bint rising = hole.shape[0] > 0
    cdef Wide *scratch
    cdef Wide *left
    cdef Wide *out
    cdef Wide *back
    cdef Wide *unseen
    cdef Wide *ahead
    cdef Wide *around
    cdef Wide nothing, one, whole, here, before, later, onward, leap, was, sum_, goes, place
    cdef double followed = 0.0, part, middle
    if n < 1 or m < 1 or joined.shape[0] != n - 1 or beside.shape[0] != m - 1 or hole.shape[0] not in (0, m):
        raise ValueError("arrays do not have the lengths n and m that belong together")
    if chance.shape[0] != n or chance.shape[1] != m or power.shape[0] != n or power.shape[1] != m:
        raise ValueError("chance and power must have the shape of weight")
    if not (SMALL <= follows <= 1 and SMALL <= none <= 1 and SMALL <= jump < LARGE):
        raise ValueError("follows, none and jump must be chances above 0")
    if near != 0.0 and (rising or not (SMALL <= near < 1 and SMALL <= stray < 1)):
        raise ValueError("near and stray must be shares between 0 and 1, of an order that does not rise")
    if near == 0.0:
        stray = 1.0
    middle = (1.0 - stray) * (1.0 - near) / (1.0 + near)  # of what is near: the share of the next place itself
    scratch = <Wide *> malloc(6 * (m + 1) * sizeof(Wide))
    if scratch == NULL:
        raise MemoryError
    with nogil:
        # in bounds: rows i are in [0, n); places j in [0, m), of left, unseen, back and around in [0, m]
        left = scratch  # exp(hole[j]); of any order 1
        unseen = scratch + (m + 1)  # by the place that would be next: unit i is none
        back = scratch + 2 * (m + 1)
        out = scratch + 3 * (m + 1)  # back for units that are none
        ahead = scratch + 4 * (m + 1)  # the next unit there, and all behind it
        around = scratch + 5 * (m + 1)  # what leads from near by to here, or from here
        nothing.value = 0.0
        nothing.power = NOTHING
        one.value = 1.0
        one.power = 0
        here = one if rising else exponential(-log(<double> m))
        for j in range(m + 1):
            unseen[j] = scaled(here, none) if rising or j < m else nothing
            if j == m:
                break
            before = times(here, exponential(weight[0, j]))
            chance[0, j] = before.value
            power[0, j] = <int32_t> before.power
            left[j] = exponential(hole[j]) if rising else one
            if rising:
                here = times(here, left[j])
        for i in range(1, n):
            goes = exponential(joined[i - 1])
            sum_ = nothing
            if not rising:
                for j in range(m):
                    before.value = chance[i - 1, j]
                    before.power = power[i - 1, j]
                    sum_ = plus(plus(sum_, before), unseen[j])
                sum_ = scaled(scaled(scaled(plus(sum_, unseen[m]), 1.0 / m), jump), stray)
                if near > 0.0:
                    # by the place that would be next: what would be before it leads to it, then what would be behind
                    before = nothing
                    here = nothing
                    for j in range(m + 1):
                        here = plus(scaled(here, near), plus(before, unseen[j]))
                        around[j] = here
                        if j < m:
                            before.value = chance[i - 1, j]
                            before.power = power[i - 1, j]
                    later = nothing
                    for j in range(m, -1, -1):
                        here = unseen[j]
                        if j > 0:
                            before.value = chance[i - 1, j - 1]
                            before.power = power[i - 1, j - 1]
                            here = plus(here, before)
                        around[j] = scaled(scaled(plus(around[j], later), jump), middle)
                        later = scaled(plus(later, here), near)
            before = nothing
            for j in range(m):
                here = unseen[j]
                if j == 0 or beside[j - 1]:
                    here = scaled(plus(times(before, goes), here), follows)
                else:
                    here = nothing
                if near > 0.0:
                    here = plus(here, around[j])
                here = times(plus(here, scaled(sum_, jump) if rising else sum_), exponential(weight[i, j]))
                if rising:
                    sum_ = times(plus(plus(sum_, before), unseen[j]), left[j])
                was = before
                before.value = chance[i - 1, j]
                before.power = power[i - 1, j]
                chance[i, j] = here.value
                power[i, j] = <int32_t> here.power
                unseen[j] = scaled(plus(was, unseen[j]), none)
            unseen[m] = scaled(plus(before, unseen[m]), none)
        here = one
        whole = nothing
        for j in range(m, -1, -1):
            out[j] = here
            whole = plus(whole, times(unseen[j], here))
            if j == 0:
                break
            back[j - 1] = here
            before.value = chance[n - 1, j - 1]
            before.power = power[n - 1, j - 1]
            whole = plus(whole, times(before, here))
            if rising:
                here = times(here, left[j - 1])
        for j in range(m):
            before.value = chance[n - 1, j]
            before.power = power[n - 1, j]
            chance[n - 1, j] = share(before, back[j], whole)
        for i in range(n - 2, -1, -1):
            goes = exponential(joined[i])
            leap = nothing  # of any order the same for each place, else into what lies behind the place that is next
            for j in range(m):
                ahead[j] = times(exponential(weight[i + 1, j]), back[j])
                if not rising:
                    leap = plus(leap, ahead[j])
            leap = scaled(scaled(scaled(leap, 1.0 / m), jump), stray)
            if near > 0.0:
                here = nothing
                for j in range(m + 1):
                    here = scaled(here, near)
                    if j < m:
                        here = plus(here, ahead[j])
                    around[j] = here
                here = nothing
                for j in range(m, -1, -1):
                    around[j] = scaled(scaled(plus(around[j], here), jump), middle)
                    if j < m:
                        here = plus(here, ahead[j])
                    here = scaled(here, near)
            later = leap  # leap for the place behind
            onward = nothing
            was = out[m]
            out[m] = plus(scaled(out[m], none), leap)
            if near > 0.0:
                out[m] = plus(out[m], around[m])
                later = plus(later, around[m])
            for j in range(m - 1, -1, -1):
                place.value = chance[i, j]
                place.power = power[i, j]
                followed += share(place, onward, whole)
                back[j] = plus(plus(onward, later), scaled(was, none))
                chance[i, j] = share(place, back[j], whole)
                was = out[j]
                here = scaled(was, none)
                onward = nothing
                if j == 0 or beside[j - 1]:
                    onward = scaled(ahead[j], follows)
                    here = plus(onward, here)
                    onward = times(onward, goes)
                out[j] = plus(here, leap)
                later = leap
                if near > 0.0:
                    out[j] = plus(out[j], around[j])
                    later = plus(later, around[j])
                if rising and j > 0:
                    leap = times(plus(leap, scaled(ahead[j], jump)), left[j - 1])
        part = log(whole.value) + whole.power * STEP if whole.value > 0.0 else -1e300
    free(scratch)
    return part, followed
