/* Rows of numbers that could stand in a table: what ext/legal_rows.pyx and ext/table_blocks.pyx ask of each.
   A row ends at the first number that does not fit: of anything but tables that is the first or second. */
#ifndef VMCARVE_LEGAL_ROWS_H
#define VMCARVE_LEGAL_ROWS_H

#include <stdint.h>
#include <string.h>

typedef struct {
    int size;                /* bytes of a number, 4 or 8 */
    int swap;                /* the numbers are in the other byte order than the machine's */
    uint64_t illegal;        /* bits that no number has */
    int ranges;              /* that numbers lie in, both ends counted */
    const uint64_t *low;
    const uint64_t *high;
    const uint8_t *unused;   /* numbers of this range stand for nothing */
    int steps;               /* at most 8: all other numbers leave one remainder by one of these */
    const uint32_t *step;
} row_rule;

/* Whether a row of `count` numbers fits and is not all zeros. In bounds: (i + 1) * size <= count * size. */
static inline int row_fits(const uint8_t *row, int64_t count, const row_rule *rule) {
    uint64_t told = 0;
    uint32_t rest[8];
    int alive = (1 << rule->steps) - 1, first = 1;
    for (int64_t i = 0; i < count; i++) {
        uint64_t value;
        int k = 0;
        if (rule->size == 4) {
            uint32_t word;
            memcpy(&word, row + 4 * i, 4);
            value = rule->swap ? __builtin_bswap32(word) : word;
        } else {
            memcpy(&value, row + 8 * i, 8);
            if (rule->swap) value = __builtin_bswap64(value);
        }
        if (value & rule->illegal) return 0;
        while (k < rule->ranges && !(rule->low[k] <= value && value <= rule->high[k])) k++;
        if (k == rule->ranges) return 0;
        told |= value;
        if (rule->steps && !rule->unused[k]) {
            for (int s = 0; s < rule->steps; s++) {
                uint32_t left = (uint32_t) (value % rule->step[s]);
                if (first) rest[s] = left;
                else if (rest[s] != left) alive &= ~(1 << s);
            }
            first = 0;
            if (!alive) return 0;
        }
    }
    return told != 0;
}

#endif
