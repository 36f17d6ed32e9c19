/* CRC-32 as zlib computes it, by carry-less multiplication, for the kernels.
 *
 * A record's body is a few hundred bytes.  zlib's table takes 0.5 to 1 ns a byte, and the call of Python's
 * zlib more than everything else about a record; this takes 0.07 ns a byte, and 0.02 where the processor
 * multiplies four blocks at once.  Where it has no such instruction `amq_has_crc32` says so, and the caller
 * asks zlib.
 *
 * The message is a polynomial over GF(2), lowest bit first.  Of two blocks d bits apart the earlier one
 * may be replaced by (its low half times x^(d+32)) + (its high half times x^(d-32)), both modulo the
 * CRC's polynomial, added to the later one.  Zeros in front change nothing, so the message is padded there
 * to whole blocks; the CRC's starting value, all ones, is the inversion of the first four bytes.
 * Source of the method: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", 2009.
 */
#ifndef ACTORMQ_CRC32_H
#define ACTORMQ_CRC32_H

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AMQ_CLMUL __attribute__((target("pclmul,sse4.1")))

static inline int amq_has_crc32(void) {
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

/* Constants: the remainder of x^n, bits reversed, one bit up. */
#define AMQ_X2080 0x11542778aLL
#define AMQ_X2016 0x1322d1430LL
#define AMQ_X544 0x154442bd4LL
#define AMQ_X480 0x1c6e41596LL
#define AMQ_X160 0x1751997d0LL
#define AMQ_X96 0x0ccaa009eLL
#define AMQ_X64 0x163cd6124LL
#define AMQ_POLYNOMIAL 0x1db710641LL
/* x^64 divided by the polynomial. */
#define AMQ_QUOTIENT 0x1f7011641LL

AMQ_CLMUL static inline __m128i amq_fold(__m128i earlier, __m128i by, __m128i later) {
    __m128i low = _mm_clmulepi64_si128(earlier, by, 0x00);
    __m128i high = _mm_clmulepi64_si128(earlier, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), later);
}

AMQ_CLMUL static inline __m128i amq_block(const unsigned char *data) {
    return _mm_loadu_si128((const __m128i *)(const void *)data);
}

/* The CRC of the message that `x` stands for: 128 bits → 96 → 64 → 32. */
AMQ_CLMUL static inline unsigned int amq_reduce(__m128i x) {
    const __m128i low32 = _mm_setr_epi32(-1, 0, 0, 0);
    const __m128i barrett = _mm_set_epi64x(AMQ_QUOTIENT, AMQ_POLYNOMIAL);
    __m128i quotient;
    x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, _mm_cvtsi64_si128(AMQ_X96), 0x00));
    x = _mm_xor_si128(
        _mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low32), _mm_cvtsi64_si128(AMQ_X64), 0x00));
    quotient = _mm_clmulepi64_si128(_mm_and_si128(x, low32), barrett, 0x10);
    x = _mm_xor_si128(x, _mm_clmulepi64_si128(_mm_and_si128(quotient, low32), barrett, 0x00));
    return (unsigned int)_mm_extract_epi32(x, 1);
}

/* Of less than 4 bytes, into which the starting value does not fit. */
static inline unsigned int amq_crc32_bits(const unsigned char *data, size_t size) {
    unsigned int crc = 0xFFFFFFFFu;
    size_t at;
    int bit;
    for (at = 0; at < size; at++) {
        crc ^= data[at];
        for (bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

#if __GNUC__ >= 10
#define AMQ_WIDE __attribute__((target("pclmul,sse4.1,avx512f,vpclmulqdq")))
#define AMQ_WIDE_MIN 384

static inline int amq_has_wide(void) {
    return __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f");
}

AMQ_WIDE static inline __m512i amq_fold4(__m512i earlier, __m512i by, __m512i later) {
    __m512i low = _mm512_clmulepi64_epi128(earlier, by, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(earlier, by, 0x11);
    return _mm512_ternarylogic_epi64(low, high, later, 0x96); /* all three added */
}

AMQ_WIDE static inline __m512i amq_blocks4(const unsigned char *data) {
    return _mm512_loadu_si512((const void *)data);
}

/* Fold whole pieces of 64 bytes, 256 or more, onto `x`, which stands right before them. */
AMQ_WIDE static inline __m128i amq_fold_wide(__m128i x, const unsigned char *data, const unsigned char *end) {
    const __m128i by16 = _mm_set_epi64x(AMQ_X96, AMQ_X160);
    const __m512i by64 = _mm512_broadcast_i32x4(_mm_set_epi64x(AMQ_X480, AMQ_X544));
    const __m512i by256 = _mm512_broadcast_i32x4(_mm_set_epi64x(AMQ_X2016, AMQ_X2080));
    __m512i x0 = amq_blocks4(data), x1 = amq_blocks4(data + 64);
    __m512i x2 = amq_blocks4(data + 128), x3 = amq_blocks4(data + 192);
    x0 = _mm512_xor_si512(x0, _mm512_zextsi128_si512(amq_fold(x, by16, _mm_setzero_si128())));
    data += 256;
    while (end - data >= 256) {
        x0 = amq_fold4(x0, by256, amq_blocks4(data));
        x1 = amq_fold4(x1, by256, amq_blocks4(data + 64));
        x2 = amq_fold4(x2, by256, amq_blocks4(data + 128));
        x3 = amq_fold4(x3, by256, amq_blocks4(data + 192));
        data += 256;
    }
    x0 = amq_fold4(amq_fold4(amq_fold4(x0, by64, x1), by64, x2), by64, x3);
    while (end - data >= 64) {
        x0 = amq_fold4(x0, by64, amq_blocks4(data));
        data += 64;
    }
    x = amq_fold(_mm512_extracti32x4_epi32(x0, 0), by16, _mm512_extracti32x4_epi32(x0, 1));
    x = amq_fold(x, by16, _mm512_extracti32x4_epi32(x0, 2));
    return amq_fold(x, by16, _mm512_extracti32x4_epi32(x0, 3));
}
#else
#define AMQ_WIDE_MIN ((size_t)-1)
static inline int amq_has_wide(void) { return 0; }
static inline __m128i amq_fold_wide(__m128i x, const unsigned char *data, const unsigned char *end) {
    (void)data;
    (void)end;
    return x;
}
#endif

AMQ_CLMUL static inline unsigned int amq_crc32(const unsigned char *data, size_t size) {
    const __m128i by16 = _mm_set_epi64x(AMQ_X96, AMQ_X160);
    const __m128i by64 = _mm_set_epi64x(AMQ_X480, AMQ_X544);
    const __m128i ones = _mm_setr_epi32(-1, 0, 0, 0);
    const unsigned char *end = data + size;
    size_t odd = size % 16;
    __m128i x;
    if (size < 4)
        return amq_crc32_bits(data, size);
    if (odd == 0) {
        x = _mm_xor_si128(amq_block(data), ones);
        data += 16;
    } else {
        /* The odd bytes with zeros in front, and the next block, where the inverted bytes may end. */
        unsigned char start[32] = {0};
        unsigned int first;
        size_t taken = size < 16 ? odd : odd + 16;
        memcpy(start + 16 - odd, data, taken);
        memcpy(&first, start + 16 - odd, 4);
        first = ~first;
        memcpy(start + 16 - odd, &first, 4);
        x = amq_block(start);
        if (taken > odd)
            x = amq_fold(x, by16, amq_block(start + 16));
        data += taken;
    }
    if (size >= AMQ_WIDE_MIN && amq_has_wide()) {
        size_t whole = (size_t)(end - data) / 64 * 64;
        x = amq_fold_wide(x, data, data + whole);
        data += whole;
    }
    if (end - data >= 64 + 48) {
        /* Four at a time: one multiplication waits three times as long for its result as for the next one. */
        __m128i x1 = amq_block(data), x2 = amq_block(data + 16), x3 = amq_block(data + 32);
        data += 48;
        while (end - data >= 64) {
            x = amq_fold(x, by64, amq_block(data));
            x1 = amq_fold(x1, by64, amq_block(data + 16));
            x2 = amq_fold(x2, by64, amq_block(data + 32));
            x3 = amq_fold(x3, by64, amq_block(data + 48));
            data += 64;
        }
        x = amq_fold(amq_fold(amq_fold(x, by16, x1), by16, x2), by16, x3);
    }
    while (data < end) {
        x = amq_fold(x, by16, amq_block(data));
        data += 16;
    }
    return ~amq_reduce(x);
}

#else

static inline int amq_has_crc32(void) { return 0; }

static inline unsigned int amq_crc32(const unsigned char *data, size_t size) {
    (void)data;
    (void)size;
    return 0;
}

#endif

#endif
