/* The look at sector starts. Three questions, each asked of what the one before let pass:
 *
 *   1. may a magic begin in one of BLOCK sectors? Nearly every block answers no, without a branch that
 *      depends on the data: a bitmap over 16 bits for places where many magics begin (`gates`), and for all other magics
 *      one 16-bit word of theirs each, compared for a whole cache line at once (`layers`).
 *   2. which magics lie in this sector? By their first two bytes, then byte for byte.
 *   3. the second field of a magic that has one, under its mask; it may lie in another sector of the structure.
 */
#ifndef VMCARVE_FIRST_LOOK_H
#define VMCARVE_FIRST_LOOK_H

#include "cpu.h"

enum { SECTOR = 512, BLOCK = 8, LINE = 64, WORDS = 32, FIELD = 16 };

typedef struct {
    /* question 1 */
    int gates, layers;        /* gates: how many of the probes' bitmaps are asked */
    const int32_t *line;      /* [layers] byte offset of a cache line in the sector: a multiple of 64 below 512 */
    const uint16_t *pattern, *mask; /* [layers][32] a word passes where (word ^ pattern) & mask == 0 */
    const uint16_t *idle;     /* [layers][32] 0xFFFF where no test stands, else 0 */
    /* question 2 */
    int probes, magics;
    const int32_t *probe;     /* [probes] 0 <= byte offset <= 510; the first `gates` of them are gates */
    const uint8_t *probe_bits;/* [probes][8192] */
    const int32_t *heads;     /* [probes + 1] heads of probe k: [heads[k], heads[k + 1]), their values rising */
    const uint16_t *head;     /* the first two bytes of some magics, little-endian */
    const int32_t *first;     /* and the first magic of their chain */
    const int32_t *next;      /* [magics] the chain goes on, -1: ends */
    const uint8_t *magic;     /* [magics][16] */
    const int32_t *room;      /* [magics] 2 <= length <= 16 */
    /* question 3 */
    const int64_t *also_at;   /* [magics] from the start of the sector that holds the magic */
    const int32_t *also_room; /* [magics] 0 (no second field) to 16 */
    const uint8_t *also_mask, *also_value; /* [magics][16] */
} look_table;

/* Each of these reads n sectors from `at`, whole cache lines of them and the gates' words, nothing else. n is a constant
 * where it is called, so that the compiler unrolls. */
static inline int gates_pass(const look_table *t, const uint8_t *at, int n) {
    unsigned any = 0;
    for (int g = 0; g < t->gates; g++) {
        const uint8_t *word = at + t->probe[g], *bits = t->probe_bits + 8192 * (size_t) g;
        for (int i = 0; i < n; i++) {
            const uint16_t v = load16(word + SECTOR * i);
            any |= bits[v >> 3] >> (v & 7);
        }
    }
    return any & 1;
}

static inline int layers_pass_plain(const look_table *t, const uint8_t *at, int n) {
    for (int k = 0; k < t->layers; k++) {
        const uint16_t *pattern = t->pattern + WORDS * k, *mask = t->mask + WORDS * k, *idle = t->idle + WORDS * k;
        for (int w = 0; w < WORDS; w++) {
            if (idle[w]) continue; /* the table's choice, not the data's: predicted */
            const uint8_t *word = at + t->line[k] + 2 * w;
            unsigned any = 0;
            for (int i = 0; i < n; i++) any |= (((load16(word + SECTOR * i) ^ pattern[w]) & mask[w]) == 0);
            if (any) return 1;
        }
    }
    return 0;
}

#if defined(VMCARVE_X86)
TARGET_AVX2 static inline int layers_pass_avx2(const look_table *t, const uint8_t *at, int n) {
    __m256i least = _mm256_set1_epi16(-1);
    for (int k = 0; k < t->layers; k++) {
        for (int half = 0; half < 2; half++) {
            const int w = WORDS * k + 16 * half;
            const __m256i pattern = _mm256_loadu_si256((const __m256i *) (t->pattern + w));
            const __m256i mask = _mm256_loadu_si256((const __m256i *) (t->mask + w));
            const uint8_t *word = at + t->line[k] + 32 * half;
            if (_mm256_testz_si256(mask, mask)) continue; /* no test in this half: the table's choice, predicted */
            __m256i low = _mm256_set1_epi16(-1);
            for (int i = 0; i < n; i++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *) (word + SECTOR * i));
                low = _mm256_min_epu16(low, _mm256_and_si256(_mm256_xor_si256(v, pattern), mask));
            }
            least = _mm256_min_epu16(least, _mm256_or_si256(low, _mm256_loadu_si256((const __m256i *) (t->idle + w))));
        }
    }
    return _mm256_movemask_epi8(_mm256_cmpeq_epi16(least, _mm256_setzero_si256())) != 0;
}

TARGET_AVX512 static inline int layers_pass_avx512(const look_table *t, const uint8_t *at, int n) {
    __m512i least = _mm512_set1_epi16(-1);
    for (int k = 0; k < t->layers; k++) {
        const __m512i pattern = _mm512_loadu_si512(t->pattern + WORDS * k), mask = _mm512_loadu_si512(t->mask + WORDS * k);
        const uint8_t *word = at + t->line[k];
        __m512i low = _mm512_set1_epi16(-1);
        for (int i = 0; i < n; i++) {
            const __m512i v = _mm512_loadu_si512(word + SECTOR * i);
            low = _mm512_min_epu16(low, _mm512_ternarylogic_epi32(v, pattern, mask, 0x28)); /* (v ^ pattern) & mask */
        }
        least = _mm512_min_epu16(least, _mm512_or_si512(low, _mm512_loadu_si512(t->idle + WORDS * k)));
    }
    return _mm512_cmpeq_epi16_mask(least, _mm512_setzero_si512()) != 0;
}
#endif

#if defined(VMCARVE_ARM)
static inline int layers_pass_neon(const look_table *t, const uint8_t *at, int n) {
    uint16x8_t least = vdupq_n_u16(0xFFFF);
    for (int k = 0; k < t->layers; k++) {
        for (int part = 0; part < 4; part++) {
            const int w = WORDS * k + 8 * part;
            const uint16x8_t pattern = vld1q_u16(t->pattern + w), mask = vld1q_u16(t->mask + w);
            const uint8_t *word = at + t->line[k] + 16 * part;
            if (vmaxvq_u16(mask) == 0) continue;
            uint16x8_t low = vdupq_n_u16(0xFFFF);
            for (int i = 0; i < n; i++) {
                const uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(word + SECTOR * i));
                low = vminq_u16(low, vandq_u16(veorq_u16(v, pattern), mask));
            }
            least = vminq_u16(least, vorrq_u16(low, vld1q_u16(t->idle + w)));
        }
    }
    return vminvq_u16(least) == 0;
}
#endif

/* The first magic of the chain for `value` at probe k, -1 when there is none. */
static inline int32_t chain_of(const look_table *t, int k, uint16_t value) {
    int32_t low = t->heads[k], high = t->heads[k + 1];
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (t->head[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low < t->heads[k + 1] && t->head[low] == value ? t->first[low] : -1;
}

/* 1: the field is there; 0: it is not; also 1 where it lies outside buf[0 .. filled): whoever confirms will see. */
static inline int also_fits(const look_table *t, int32_t m, const uint8_t *buf, int64_t filled, int64_t sector_at) {
    const int n = t->also_room[m];
    const int64_t from = sector_at + t->also_at[m];
    if (n == 0 || from < 0 || from + n > filled) return 1;
    const uint8_t *mask = t->also_mask + FIELD * (size_t) m, *value = t->also_value + FIELD * (size_t) m;
    for (int i = 0; i < n; i++)
        if ((buf[from + i] & mask[i]) != value[i]) return 0;
    return 1;
}

/* The magics at one sector's probes, those with a gate or those without; -1 when cap is reached. */
static inline int64_t look_sector(const look_table *t, int gated, const uint8_t *buf, int64_t filled, int64_t s,
                                  int64_t *hit_sector, int32_t *hit_magic, int64_t hits, int64_t cap) {
    for (int k = gated ? 0 : t->gates; k < (gated ? t->gates : t->probes); k++) {
        const uint8_t *at = buf + SECTOR * s + t->probe[k];
        const uint16_t value = load16(at);
        if (!(t->probe_bits[8192 * (size_t) k + (value >> 3)] >> (value & 7) & 1)) continue;
        for (int32_t m = chain_of(t, k, value); m >= 0; m = t->next[m]) {
            const int n = t->room[m];
            const uint8_t *want = t->magic + FIELD * (size_t) m;
            int i = 2;
            if (t->probe[k] + n > SECTOR) continue;
            while (i < n && at[i] == want[i]) i++;
            if (i < n || !also_fits(t, m, buf, filled, SECTOR * s)) continue;
            if (hits == cap) return -1;
            hit_sector[hits] = s;
            hit_magic[hits++] = m;
        }
    }
    return hits;
}

/* The magics of sectors [*sector, end) of buf, of which `filled` bytes are there (512 * end <= filled). Writes at most
 * cap hits and returns how many; *sector: where to go on, `end` when all are looked at. cap >= magics, so a sector's
 * hits always fit into an empty result: a sector that would overflow is given back whole. */
#define DEFINE_LOOK(NAME, TARGET, LAYERS_PASS)                                                                          \
    TARGET static int64_t NAME(const look_table *t, const uint8_t *buf, int64_t filled, int64_t *sector, int64_t end,   \
                               int64_t *hit_sector, int32_t *hit_magic, int64_t cap) {                                  \
        int64_t s = *sector, hits = 0;                                                                                  \
        while (s < end) {                                                                                               \
            const uint8_t *block = buf + SECTOR * s;                                                                    \
            int layered = 1, gated = 1;                                                                                 \
            if (s + BLOCK <= end) {                                                                                     \
                layered = LAYERS_PASS(t, block, BLOCK);                                                                 \
                gated = gates_pass(t, block, BLOCK);                                                                    \
                if (!(layered | gated)) {                                                                               \
                    s += BLOCK;                                                                                         \
                    continue;                                                                                           \
                }                                                                                                       \
            }                                                                                                           \
            for (const int64_t stop = s + BLOCK < end ? s + BLOCK : end; s < stop; s++) {                               \
                int64_t now = hits;                                                                                     \
                if (gated && gates_pass(t, buf + SECTOR * s, 1))                                                        \
                    now = look_sector(t, 1, buf, filled, s, hit_sector, hit_magic, now, cap);                           \
                if (layered && now >= 0 && LAYERS_PASS(t, buf + SECTOR * s, 1))                                         \
                    now = look_sector(t, 0, buf, filled, s, hit_sector, hit_magic, now, cap);                           \
                if (now < 0) {                                                                                          \
                    *sector = s;                                                                                        \
                    return hits;                                                                                        \
                }                                                                                                       \
                hits = now;                                                                                             \
            }                                                                                                           \
        }                                                                                                               \
        *sector = s;                                                                                                    \
        return hits;                                                                                                    \
    }

DEFINE_LOOK(look_plain, , layers_pass_plain)
#if defined(VMCARVE_X86)
DEFINE_LOOK(look_avx2, TARGET_AVX2, layers_pass_avx2)
DEFINE_LOOK(look_avx512, TARGET_AVX512, layers_pass_avx512)
#elif defined(VMCARVE_ARM)
DEFINE_LOOK(look_neon, , layers_pass_neon)
#endif

/* Hits whose second field lay behind what was read are judged again now that `filled` bytes are there; of the last ones
 * only, from sector `from` on. Returns how many hits are left of `hits`, which rise. */
static int64_t judge_again(const look_table *t, const uint8_t *buf, int64_t filled, int64_t from, int64_t *hit_sector,
                           int32_t *hit_magic, int64_t hits) {
    int64_t i = hits, kept;
    while (i > 0 && hit_sector[i - 1] >= from) i--;
    for (kept = i; i < hits; i++) {
        if (!also_fits(t, hit_magic[i], buf, filled, SECTOR * hit_sector[i])) continue;
        hit_sector[kept] = hit_sector[i];
        hit_magic[kept++] = hit_magic[i];
    }
    return kept;
}

typedef int64_t (*look_t)(const look_table *, const uint8_t *, int64_t, int64_t *, int64_t, int64_t *, int32_t *, int64_t);

static look_t look_of(int path) {
#if defined(VMCARVE_X86)
    if (path == PATH_AVX512) return look_avx512;
    if (path == PATH_AVX2) return look_avx2;
#elif defined(VMCARVE_ARM)
    if (path == PATH_NEON) return look_neon;
#endif
    (void) path;
    return look_plain;
}

#endif
