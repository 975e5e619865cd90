/* CRC-32C (Castagnoli, reflected) as a bare register update: no inversion before or after. */
#ifndef HYBRID_CRC32C_H
#define HYBRID_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Once, before all else: makes the tables and looks at what the processor has. */
void crc32c_setup(void);

/* Whether the processor's own instruction is used. */
int crc32c_is_hardware(void);

uint32_t crc32c_update(uint32_t reg, const uint8_t *data, size_t size);

/* Three independent registers at once, which takes hardly longer than one: the instruction can be
 * started each cycle, but its result takes three. A size may be 0. */
void crc32c_update3(uint32_t regs[3], const uint8_t *const data[3], const size_t sizes[3]);

/* The update without the processor's instruction; public for tests. */
uint32_t crc32c_portable(uint32_t reg, const uint8_t *data, size_t size);

#endif
