"""CRC-32C from its definition, apart from any library that the product uses (spec: zfile 3)."""

from __future__ import annotations

from functools import cache, lru_cache

POLYNOMIAL = 0x82F63B78
"""Castagnoli, reflected."""


@cache
def byte_table() -> tuple[int, ...]:
    """The 256-entry reflected table."""
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@cache
def word_table() -> tuple[int, ...]:
    """The same for 16 bits at a time: two steps of the byte table in one."""
    table = byte_table()
    return tuple(
        (table[word & 0xFF] >> 8) ^ table[(table[word & 0xFF] ^ (word >> 8)) & 0xFF]
        for word in range(65536)
    )


def crc32c_raw(seed: int, data: bytes) -> int:
    """The bare register: starts with ``seed``, no inversion before or after."""
    register = seed
    even = len(data) & ~1
    table = word_table()
    for word in memoryview(data)[:even].cast("H"):
        register = (register >> 16) ^ table[(register ^ word) & 0xFFFF]
    for byte in data[even:]:
        register = (register >> 8) ^ byte_table()[(register ^ byte) & 0xFF]
    return register


@lru_cache(maxsize=1024)
def crc32c_cached(seed: int, data: bytes) -> int:
    """As crc32c_raw; images repeat blocks (zeros above all), and the table walk is slow."""
    return crc32c_raw(seed, data)
