#include "crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define HAVE_INSTRUCTION 1
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define CRC_WORD(reg, word) ((uint32_t)_mm_crc32_u64((reg), (word)))
#define CRC_BYTE(reg, byte) (_mm_crc32_u8((reg), (byte)))
static int look_for_instruction(void) { return __builtin_cpu_supports("sse4.2") != 0; }

#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define HAVE_INSTRUCTION 1
#if defined(__clang__)
#define WITH_INSTRUCTION __attribute__((target("crc")))
#define CRC_WORD(reg, word) (__builtin_arm_crc32cd((reg), (word)))
#define CRC_BYTE(reg, byte) (__builtin_arm_crc32cb((reg), (byte)))
#else
#define WITH_INSTRUCTION __attribute__((target("+crc")))
#define CRC_WORD(reg, word) (__builtin_aarch64_crc32cx((reg), (word)))
#define CRC_BYTE(reg, byte) (__builtin_aarch64_crc32cb((reg), (byte)))
#endif
static int look_for_instruction(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

#else
#define HAVE_INSTRUCTION 0
static int look_for_instruction(void) { return 0; }
#endif

#define POLYNOMIAL 0x82F63B78u

static uint32_t table[8][256];
static int hardware;

void crc32c_setup(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = (value >> 1) ^ (value & 1 ? POLYNOMIAL : 0);
        table[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int step = 1; step < 8; step++)
            table[step][i] = (table[step - 1][i] >> 8) ^ table[0][table[step - 1][i] & 0xFF];
    hardware = look_for_instruction();
}

int crc32c_is_hardware(void) { return hardware; }

static uint32_t load_u32le(const uint8_t *data) {
    return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

uint32_t crc32c_portable(uint32_t reg, const uint8_t *data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low = reg ^ load_u32le(data), high = load_u32le(data + 4);
        reg = table[7][low & 0xFF] ^ table[6][low >> 8 & 0xFF] ^ table[5][low >> 16 & 0xFF] ^
              table[4][low >> 24] ^ table[3][high & 0xFF] ^ table[2][high >> 8 & 0xFF] ^
              table[1][high >> 16 & 0xFF] ^ table[0][high >> 24];
    }
    for (; size; data++, size--)
        reg = (reg >> 8) ^ table[0][(reg ^ *data) & 0xFF];
    return reg;
}

#if HAVE_INSTRUCTION

static inline uint64_t load_u64(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word); /* both processors are little-endian, as the CRC is */
    return word;
}

WITH_INSTRUCTION static uint32_t update_hardware(uint32_t reg, const uint8_t *data, size_t size) {
    for (; size >= 8; data += 8, size -= 8)
        reg = CRC_WORD(reg, load_u64(data));
    for (; size; data++, size--)
        reg = CRC_BYTE(reg, *data);
    return reg;
}

WITH_INSTRUCTION static void update3_hardware(uint32_t regs[3], const uint8_t *const data[3],
                                              const size_t sizes[3]) {
    size_t common = sizes[0] < sizes[1] ? sizes[0] : sizes[1];
    if (sizes[2] < common)
        common = sizes[2];
    common &= ~(size_t)7;
    uint32_t a = regs[0], b = regs[1], c = regs[2];
    for (size_t at = 0; at < common; at += 8) {
        a = CRC_WORD(a, load_u64(data[0] + at));
        b = CRC_WORD(b, load_u64(data[1] + at));
        c = CRC_WORD(c, load_u64(data[2] + at));
    }
    regs[0] = update_hardware(a, data[0] + common, sizes[0] - common);
    regs[1] = update_hardware(b, data[1] + common, sizes[1] - common);
    regs[2] = update_hardware(c, data[2] + common, sizes[2] - common);
}

#endif

uint32_t crc32c_update(uint32_t reg, const uint8_t *data, size_t size) {
#if HAVE_INSTRUCTION
    if (hardware)
        return update_hardware(reg, data, size);
#endif
    return crc32c_portable(reg, data, size);
}

void crc32c_update3(uint32_t regs[3], const uint8_t *const data[3], const size_t sizes[3]) {
#if HAVE_INSTRUCTION
    if (hardware) {
        update3_hardware(regs, data, sizes);
        return;
    }
#endif
    for (int i = 0; i < 3; i++)
        regs[i] = crc32c_portable(regs[i], data[i], sizes[i]);
}
