/* CRC-32C of one stretch of bytes, and of many structures at once: tables, or the CPU's own instruction.
 *
 * The instruction gives a result every cycle and takes three: one stream alone reaches a third of what it can. Several
 * structures are summed side by side; a long stretch is cut in three whose registers are put together by `shift`.
 */
#ifndef VMCARVE_CRC32C_H
#define VMCARVE_CRC32C_H

#include "cpu.h"

#if defined(VMCARVE_ARM) && (defined(__clang__) || defined(__GNUC__))
#include <arm_acle.h>
#if defined(__clang__)
#define TARGET_CRC __attribute__((target("crc")))
#else
#define TARGET_CRC __attribute__((target("+crc")))
#endif
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

enum { THIRD = 512 }; /* bytes of each of the three parts */

static uint32_t CRC_TABLE[8][256];       /* [k][b]: the register after byte b and k zero bytes, from register 0 */
static uint32_t CRC_SHIFT[2][4][256];    /* [i][k][b]: register b << 8k after THIRD * (i + 1) zero bytes */

static uint32_t crc_plain(const uint8_t *at, int64_t n, uint32_t state) {
    for (; n >= 8; at += 8, n -= 8) {
        const uint64_t word = load64(at) ^ state;
        state = CRC_TABLE[7][word & 255] ^ CRC_TABLE[6][word >> 8 & 255] ^ CRC_TABLE[5][word >> 16 & 255]
                ^ CRC_TABLE[4][word >> 24 & 255] ^ CRC_TABLE[3][word >> 32 & 255] ^ CRC_TABLE[2][word >> 40 & 255]
                ^ CRC_TABLE[1][word >> 48 & 255] ^ CRC_TABLE[0][word >> 56];
    }
    for (; n > 0; at++, n--) state = (state >> 8) ^ CRC_TABLE[0][(state ^ *at) & 255];
    return state;
}

static uint32_t crc_zeros_plain(int64_t n, uint32_t state) {
    for (; n > 0; n--) state = (state >> 8) ^ CRC_TABLE[0][state & 255];
    return state;
}

/* Called once, at import, before anything else here. */
static void crc_fill_tables(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t value = b;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? 0x82F63B78u : 0);
        CRC_TABLE[0][b] = value;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++) CRC_TABLE[k][b] = (CRC_TABLE[k - 1][b] >> 8) ^ CRC_TABLE[0][CRC_TABLE[k - 1][b] & 255];
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 4; k++)
            for (int bit = 0; bit < 8; bit++) {
                /* the register is linear: what single bits become gives what every byte becomes */
                const uint32_t one = crc_zeros_plain(THIRD * (i + 1), (uint32_t) 1 << (8 * k + bit));
                for (int b = 0; b < 256; b++)
                    if (b >> bit & 1) CRC_SHIFT[i][k][b] ^= one;
            }
}

static inline uint32_t crc_shift(int i, uint32_t state) {
    return CRC_SHIFT[i][0][state & 255] ^ CRC_SHIFT[i][1][state >> 8 & 255] ^ CRC_SHIFT[i][2][state >> 16 & 255]
           ^ CRC_SHIFT[i][3][state >> 24];
}

static int crc_instruction_is_here(int path) {
#if defined(VMCARVE_X86)
    return path != PATH_PLAIN;
#elif defined(VMCARVE_ARM) && defined(__linux__)
    return path == PATH_NEON && (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#elif defined(VMCARVE_ARM) && defined(__APPLE__)
    return path == PATH_NEON;
#else
    (void) path;
    return 0;
#endif
}

#if defined(VMCARVE_X86)
#define CRC_TARGET TARGET_SSE42
#define CRC8(state, at) ((uint32_t) _mm_crc32_u64((state), load64(at)))
#define CRC1(state, byte) _mm_crc32_u8((state), (byte))
#elif defined(VMCARVE_ARM)
#define CRC_TARGET TARGET_CRC
#define CRC8(state, at) __crc32cd((state), load64(at))
#define CRC1(state, byte) __crc32cb((state), (byte))
#endif

#if defined(CRC_TARGET)
CRC_TARGET static uint32_t crc_instruction(const uint8_t *at, int64_t n, uint32_t state) {
    for (; n >= 3 * THIRD; at += 3 * THIRD, n -= 3 * THIRD) {
        uint32_t b = 0, c = 0;
        for (int i = 0; i < THIRD; i += 8) {
            state = CRC8(state, at + i);
            b = CRC8(b, at + THIRD + i);
            c = CRC8(c, at + 2 * THIRD + i);
        }
        state = crc_shift(1, state) ^ crc_shift(0, b) ^ c;
    }
    for (; n >= 8; at += 8, n -= 8) state = CRC8(state, at);
    for (; n > 0; at++, n--) state = CRC1(state, *at);
    return state;
}

/* Four structures side by side: reads at[i][0 .. n). */
CRC_TARGET static void crc_instruction_4(const uint8_t *const at[4], int64_t n, uint32_t state[4]) {
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        a = CRC8(a, at[0] + i);
        b = CRC8(b, at[1] + i);
        c = CRC8(c, at[2] + i);
        d = CRC8(d, at[3] + i);
    }
    for (; i < n; i++) {
        a = CRC1(a, at[0][i]);
        b = CRC1(b, at[1][i]);
        c = CRC1(c, at[2][i]);
        d = CRC1(d, at[3][i]);
    }
    state[0] = a, state[1] = b, state[2] = c, state[3] = d;
}

CRC_TARGET static uint32_t crc_zeros_instruction(int64_t n, uint32_t state) {
    for (; n > 0; n--) state = CRC1(state, 0);
    return state;
}
#endif

static uint32_t crc_run(const uint8_t *at, int64_t n, uint32_t state, int instruction) {
#if defined(CRC_TARGET)
    if (instruction) return crc_instruction(at, n, state);
#endif
    (void) instruction;
    return crc_plain(at, n, state);
}

/* out[i]: the register after structure i, from init; `zero` bytes from zero_at on count as zeros. The caller has checked
 * that at[i] .. at[i] + length lies in buf, and that zero_at + zero <= length. */
static void crc_rows(const uint8_t *buf, const int64_t *at, int64_t rows, int64_t length, int64_t zero_at, int64_t zero,
                     uint32_t init, uint32_t *out, int instruction) {
    const int64_t behind = zero_at + zero, rest = length - behind;
    int64_t i = 0;
#if defined(CRC_TARGET)
    for (; instruction && i + 4 <= rows; i += 4) {
        const uint8_t *p[4] = {buf + at[i], buf + at[i + 1], buf + at[i + 2], buf + at[i + 3]};
        uint32_t state[4] = {init, init, init, init};
        crc_instruction_4(p, zero_at, state);
        for (int k = 0; k < 4; k++) {
            state[k] = crc_zeros_instruction(zero, state[k]);
            p[k] += behind;
        }
        crc_instruction_4(p, rest, state);
        memcpy(out + i, state, sizeof state);
    }
#endif
    for (; i < rows; i++) {
        const uint8_t *p = buf + at[i];
        uint32_t state = crc_zeros_plain(zero, crc_run(p, zero_at, init, instruction));
        out[i] = crc_run(p + behind, rest, state, instruction);
    }
}

#endif
