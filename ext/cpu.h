/* Which instruction sets a kernel may use here. The wheel is built for the baseline; functions above it carry a target
 * attribute and are called only after path_is_here() said so. A path is a number, so that a test can force each one.
 *
 * A path says what the *functions written for it* may use: PATH_AVX2 is AVX2 and SSE4.2; PATH_AVX512 is AVX-512 F, BW, VL
 * and VBMI (the first generation, without VBMI, gains little and slows its clock); PATH_NEON is the baseline of AArch64;
 * PATH_PLAIN is C without any of it. */
#ifndef VMCARVE_CPU_H
#define VMCARVE_CPU_H

#include <stdint.h>
#include <string.h>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define VMCARVE_X86 1
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))
#if defined(__clang__) && __clang_major__ >= 14 /* there the instruction became a feature of its own */
#define TARGET_SSE42 __attribute__((target("sse4.2,crc32")))
#else
#define TARGET_SSE42 __attribute__((target("sse4.2")))
#endif
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__aarch64__) && defined(__AARCH64EL__)
#define VMCARVE_ARM 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(at) __builtin_prefetch(at)
#else
#define PREFETCH(at) ((void) (at))
#endif

enum { PATH_PLAIN = 0, PATH_AVX2 = 1, PATH_AVX512 = 2, PATH_NEON = 3, PATHS = 4 };

static inline int path_is_here(int path) {
    if (path == PATH_PLAIN) return 1;
#if defined(VMCARVE_X86)
    __builtin_cpu_init();
    if (path == PATH_AVX2) return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("sse4.2") != 0;
    if (path == PATH_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
               && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") && path_is_here(PATH_AVX2);
#elif defined(VMCARVE_ARM)
    if (path == PATH_NEON) return 1;
#endif
    return 0;
}

/* Little-endian loads of any alignment; compilers make one instruction of each (written as loops they do not). */
static inline uint16_t load16(const uint8_t *at) { return (uint16_t) (at[0] | at[1] << 8); }
static inline uint32_t load32(const uint8_t *at) {
    return (uint32_t) at[0] | (uint32_t) at[1] << 8 | (uint32_t) at[2] << 16 | (uint32_t) at[3] << 24;
}
static inline uint64_t load64(const uint8_t *at) {
    return (uint64_t) at[0] | (uint64_t) at[1] << 8 | (uint64_t) at[2] << 16 | (uint64_t) at[3] << 24
           | (uint64_t) at[4] << 32 | (uint64_t) at[5] << 40 | (uint64_t) at[6] << 48 | (uint64_t) at[7] << 56;
}

#endif
