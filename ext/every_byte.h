/* Magics at every byte. In two steps:
 *
 *   1. pass: may one of the magics begin at one of the next STEP bytes? Each magic belongs to one of 8 buckets; for each
 *      of its first four bytes two tables say which buckets that byte's low and high half occur in. A place passes where
 *      some bucket is left after all eight look-ups, which a shuffle does for 16 to 64 places at once.
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
    const uint8_t *begins;     /* [8192] one bit for the first two bytes of each magic, little-endian */
    int magics;
    const uint8_t *magic;      /* [magics][16] */
    const int32_t *room;       /* [magics] 4 <= length <= 16 */
    const int64_t *at;         /* [magics] the magic's place in its structure */
    const int64_t *also_at;    /* [magics] the second field, from the structure's start */
    const int32_t *also_room;  /* [magics] 0: none */
    const uint8_t *also_mask, *also_value; /* [magics][16] */
} bytes_table;

/* Each pass_* reads from[0 .. STEP + PREFIX - 1): bit i of the result says whether a magic may begin at from[i]. */
#if defined(VMCARVE_X86)
TARGET_AVX2 static inline uint64_t pass_avx2(const bytes_table *t, const uint8_t *from) {
    const __m256i half = _mm256_set1_epi8(15);
    __m256i left = _mm256_set1_epi8(-1);
    for (int j = 0; j < PREFIX; j++) {
        const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (t->low + 16 * j)));
        const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (t->high + 16 * j)));
        const __m256i v = _mm256_loadu_si256((const __m256i *) (from + j));
        const __m256i a = _mm256_shuffle_epi8(low, _mm256_and_si256(v, half));
        const __m256i b = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(v, 4), half));
        left = _mm256_and_si256(left, _mm256_and_si256(a, b));
    }
    return (uint32_t) ~_mm256_movemask_epi8(_mm256_cmpeq_epi8(left, _mm256_setzero_si256()));
}

TARGET_AVX512 static inline uint64_t pass_avx512(const bytes_table *t, const uint8_t *from) {
    const __m512i half = _mm512_set1_epi8(15);
    __m512i left = _mm512_set1_epi8(-1);
    for (int j = 0; j < PREFIX; j++) {
        const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) (t->low + 16 * j)));
        const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) (t->high + 16 * j)));
        const __m512i v = _mm512_loadu_si512(from + j);
        const __m512i a = _mm512_shuffle_epi8(low, _mm512_and_si512(v, half));
        const __m512i b = _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16(v, 4), half));
        left = _mm512_ternarylogic_epi32(left, a, b, 0x80); /* all three */
    }
    return _mm512_test_epi8_mask(left, left);
}
#endif

#if defined(VMCARVE_ARM)
static inline uint64_t pass_neon(const bytes_table *t, const uint8_t *from) {
    uint8x16_t left = vdupq_n_u8(0xFF);
    for (int j = 0; j < PREFIX; j++) {
        const uint8x16_t v = vld1q_u8(from + j);
        const uint8x16_t a = vqtbl1q_u8(vld1q_u8(t->low + 16 * j), vandq_u8(v, vdupq_n_u8(15)));
        const uint8x16_t b = vqtbl1q_u8(vld1q_u8(t->high + 16 * j), vshrq_n_u8(v, 4));
        left = vandq_u8(left, vandq_u8(a, b));
    }
    return vmaxvq_u8(left) != 0 ? 0xFFFF : 0; /* which of them costs more to tell than to try */
}
#endif

/* One place at a time, by the bitmap: without a shuffle the eight look-ups cost more than they spare. */
static inline uint64_t pass_plain(const bytes_table *t, const uint8_t *from) {
    uint64_t places = 0;
    for (int i = 0; i < 8; i++) {
        const uint16_t v = load16(from + i);
        places |= (uint64_t) (t->begins[v >> 3] >> (v & 7) & 1) << i;
    }
    return places;
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
#define DEFINE_SEARCH(NAME, TARGET, PASS, STEP)                                                                         \
    TARGET static int64_t NAME(const bytes_table *t, const uint8_t *buf, int64_t filled, int64_t image_at,              \
                               int64_t *place, int64_t end, int64_t *hit_at, int32_t *hit_magic, int64_t cap) {         \
int64_t i = *place, hits = 0;                                                                                  \
        while (i < end) {                                                                                              \
            /* near the end every place is tried */                                                                    \
            uint64_t places = ((uint64_t) 2 << (STEP - 1)) - 1;                                                        \
            if (i + STEP + PREFIX - 1 <= filled) places = PASS(t, buf + i);                                            \
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

DEFINE_SEARCH(search_plain, , pass_plain, 8)
#if defined(VMCARVE_X86)
DEFINE_SEARCH(search_avx2, TARGET_AVX2, pass_avx2, 32)
DEFINE_SEARCH(search_avx512, TARGET_AVX512, pass_avx512, 64)
#elif defined(VMCARVE_ARM)
DEFINE_SEARCH(search_neon, , pass_neon, 16)
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
