/* Magics at every byte. In two steps:
 *
 *   1. skip: may one of the magics begin at one of the next STEP bytes? Each magic belongs to one of 8 buckets; for each
 *      of its first bytes two tables say which buckets that byte's low and high half occur in. A place passes where some
 *      bucket is left after all look-ups, which a shuffle does for 16 to 64 places at once. AVX-512 has a shuffle of 64
 *      entries: one look-up by six bits of each of four bytes; three bytes are enough where each takes two look-ups.
 *   2. the magic itself, byte for byte, and its second field.
 *
 * The method is Teddy's (Hyperscan, and the memchr crate), with the tables made from the modules' signatures.
 */
#ifndef VMCARVE_EVERY_BYTE_H
#define VMCARVE_EVERY_BYTE_H

#include "cpu.h"

enum { PREFIX = 4, BYTES_FIELD = 16 };

typedef struct {
    const uint8_t *low, *high; /* [4][16] bit b: bucket b has a magic whose byte j has this half */
    const uint8_t *six;        /* [4][64] the same for its lower six bits */
    const uint8_t *begins;     /* [8192] one bit for the first two bytes of each magic, little-endian */
    int magics;
    const uint8_t *magic;      /* [magics][16] */
    const int32_t *room;       /* [magics] 4 <= length <= 16 */
    const int64_t *at;         /* [magics] the magic's place in its structure */
    const int64_t *also_at;    /* [magics] the second field, from the structure's start */
    const int32_t *also_room;  /* [magics] 0: none */
    const uint8_t *also_mask, *also_value; /* [magics][16] */
} bytes_table;

/* Each skip_* goes on from buf[i] in steps of STEP while no magic may begin there, and ends with i > last at the latest.
 * Where it stops before that, bit k of *places says whether a magic may begin at buf[i + k]. It reads the STEP + PREFIX - 1
 * bytes from buf[i] on, i <= last. Nothing is stored in these loops, so that the tables stay in registers. */
#if defined(VMCARVE_X86)
TARGET_AVX2 static inline __m256i buckets_avx2(__m256i low, __m256i high, const uint8_t *from) {
    const __m256i half = _mm256_set1_epi8(15), v = _mm256_loadu_si256((const __m256i *) from);
    return _mm256_and_si256(_mm256_shuffle_epi8(low, _mm256_and_si256(v, half)),
                            _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(v, 4), half)));
}

TARGET_AVX2 static inline int64_t skip_avx2(const bytes_table *t, const uint8_t *buf, int64_t i, int64_t last,
                                            uint64_t *places) {
    __m256i low[PREFIX], high[PREFIX];
    for (int j = 0; j < PREFIX; j++) {
        low[j] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (t->low + 16 * j)));
        high[j] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (t->high + 16 * j)));
    }
    for (; i <= last; i += 32) {
        __m256i left = _mm256_and_si256(buckets_avx2(low[0], high[0], buf + i), buckets_avx2(low[1], high[1], buf + i + 1));
        left = _mm256_and_si256(left, buckets_avx2(low[2], high[2], buf + i + 2));
        if (_mm256_testz_si256(left, left)) continue;
        left = _mm256_and_si256(left, buckets_avx2(low[3], high[3], buf + i + 3)); /* rarely in noise, often in text */
        *places = (uint32_t) ~_mm256_movemask_epi8(_mm256_cmpeq_epi8(left, _mm256_setzero_si256()));
        if (*places != 0) break;
    }
    return i;
}

TARGET_AVX512 static inline int64_t skip_avx512(const bytes_table *t, const uint8_t *buf, int64_t i, int64_t last,
                                                uint64_t *places) {
    const __m512i one = _mm512_loadu_si512(t->six), two = _mm512_loadu_si512(t->six + 64);
    const __m512i three = _mm512_loadu_si512(t->six + 128), four = _mm512_loadu_si512(t->six + 192);
    for (; i <= last; i += 64) {
        const __m512i a = _mm512_permutexvar_epi8(_mm512_loadu_si512(buf + i), one);
        const __m512i b = _mm512_permutexvar_epi8(_mm512_loadu_si512(buf + i + 1), two);
        const __m512i c = _mm512_permutexvar_epi8(_mm512_loadu_si512(buf + i + 2), three);
        const __m512i d = _mm512_permutexvar_epi8(_mm512_loadu_si512(buf + i + 3), four);
        *places = _mm512_test_epi8_mask(_mm512_ternarylogic_epi32(a, b, c, 0x80), d); /* all four */
        if (*places != 0) break;
    }
    return i;
}
#endif

#if defined(VMCARVE_ARM)
static inline uint8x16_t buckets_neon(uint8x16_t low, uint8x16_t high, const uint8_t *from) {
    const uint8x16_t v = vld1q_u8(from);
    return vandq_u8(vqtbl1q_u8(low, vandq_u8(v, vdupq_n_u8(15))), vqtbl1q_u8(high, vshrq_n_u8(v, 4)));
}

static inline int64_t skip_neon(const bytes_table *t, const uint8_t *buf, int64_t i, int64_t last, uint64_t *places) {
    uint8x16_t low[PREFIX], high[PREFIX];
    for (int j = 0; j < PREFIX; j++) {
        low[j] = vld1q_u8(t->low + 16 * j);
        high[j] = vld1q_u8(t->high + 16 * j);
    }
    for (; i <= last; i += 16) {
        uint8x16_t left = vandq_u8(buckets_neon(low[0], high[0], buf + i), buckets_neon(low[1], high[1], buf + i + 1));
        left = vandq_u8(left, buckets_neon(low[2], high[2], buf + i + 2));
        if (vmaxvq_u8(left) == 0) continue;
        left = vandq_u8(left, buckets_neon(low[3], high[3], buf + i + 3));
        *places = vmaxvq_u8(left) != 0 ? 0xFFFF : 0; /* which of them costs more to tell than to try */
        if (*places != 0) break;
    }
    return i;
}
#endif

/* By the bitmap: without a shuffle the look-ups cost more than they spare. */
static inline int64_t skip_plain(const bytes_table *t, const uint8_t *buf, int64_t i, int64_t last, uint64_t *places) {
    const uint8_t *begins = t->begins;
    for (; i <= last; i += 8) {
        unsigned found = 0;
        for (int k = 0; k < 8; k++) {
            const uint16_t v = load16(buf + i + k);
            found |= (unsigned) (begins[v >> 3] >> (v & 7) & 1) << k;
        }
        *places = found;
        if (found) break;
    }
    return i;
}

/* Writes the magics that begin at buf[i] into the result; -1 when it is full. Structures that begin on a sector are left
 * to the look at sectors. in bounds: i < end <= filled, and every comparison stays below filled. */
static inline int64_t magics_at(const bytes_table *t, const uint8_t *buf, int64_t filled, int64_t image_at, int64_t i,
                                int64_t *hit_at, int32_t *hit_magic, int64_t hits, int64_t cap) {
    for (int32_t m = 0; m < t->magics; m++) {
        const uint8_t *want = t->magic + BYTES_FIELD * (size_t) m;
        const int64_t start = i - t->at[m];
        const int n = t->room[m];
        if (buf[i] != want[0] || i + n > filled || ((image_at + start) & 511) == 0 || image_at + start < 0) continue;
        if (memcmp(buf + i, want, (size_t) n) != 0) continue;
        const int64_t from = start + t->also_at[m];
        const int also = t->also_room[m];
        int fits = 1;
        if (also && from >= 0 && from + also <= filled)
            for (int k = 0; k < also; k++)
                fits &= (buf[from + k] & t->also_mask[BYTES_FIELD * m + k]) == t->also_value[BYTES_FIELD * m + k];
        if (!fits) continue;
        if (hits == cap) return -1;
        hit_at[hits] = i;
        hit_magic[hits++] = m;
    }
    return hits;
}

/* The magics that begin in buf[*place .. end), of which `filled` bytes are there; buf[0] is image offset image_at. Writes
 * at most cap hits; *place: where to go on. cap >= magics: a place whose hits would overflow is given back whole. */
#define DEFINE_SEARCH(NAME, TARGET, SKIP, STEP)                                                                        \
    TARGET static int64_t NAME(const bytes_table *t, const uint8_t *buf, int64_t filled, int64_t image_at,             \
                               int64_t *place, int64_t end, int64_t *hit_at, int32_t *hit_magic, int64_t cap) {        \
        const int64_t last = (end < filled - (PREFIX - 1) ? end : filled - (PREFIX - 1)) - STEP;                       \
        int64_t i = *place, hits = 0;                                                                                  \
        while (i < end) {                                                                                              \
            uint64_t places = ((uint64_t) 2 << (STEP - 1)) - 1; /* near the end every place is tried */                \
            if (i <= last && (i = SKIP(t, buf, i, last, &places)) > last) continue;                                    \
            for (int k = 0; places != 0 && i + k < end; k++, places >>= 1) {                                           \
                if (!(places & 1)) continue;                                                                           \
                const int64_t now = magics_at(t, buf, filled, image_at, i + k, hit_at, hit_magic, hits, cap);          \
                if (now < 0) {                                                                                         \
                    *place = i + k;                                                                                    \
                    return hits;                                                                                       \
                }                                                                                                      \
                hits = now;                                                                                            \
            }                                                                                                          \
            i += STEP;                                                                                                 \
        }                                                                                                              \
        *place = end;                                                                                                  \
        return hits;                                                                                                   \
    }

DEFINE_SEARCH(search_plain, , skip_plain, 8)
#if defined(VMCARVE_X86)
DEFINE_SEARCH(search_avx2, TARGET_AVX2, skip_avx2, 32)
DEFINE_SEARCH(search_avx512, TARGET_AVX512, skip_avx512, 64)
#elif defined(VMCARVE_ARM)
DEFINE_SEARCH(search_neon, , skip_neon, 16)
#endif

typedef int64_t (*search_t)(const bytes_table *, const uint8_t *, int64_t, int64_t, int64_t *, int64_t, int64_t *,
                            int32_t *, int64_t);

static search_t search_of(int path) {
#if defined(VMCARVE_X86)
    if (path == PATH_AVX512) return search_avx512;
    if (path == PATH_AVX2) return search_avx2;
#elif defined(VMCARVE_ARM)
    if (path == PATH_NEON) return search_neon;
#endif
    (void) path;
    return search_plain;
}

#endif
