"""Ways in which a disk or a copy spoils a file."""

import random


def damaged(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """A spoilt copy, never the same as the original, and what was done to it."""
    while True:
        kind = chance.choice(KINDS)
        spoilt = kind(content, chance)
        if spoilt != content:
            return kind.__name__, spoilt


def bit_flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def several_flips(content: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(2, 20)):
        content = bit_flip(content, chance)
    return content


def garbage(content: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(content)), chance.randint(1, 64)
    return content[:start] + chance.randbytes(length) + content[start + length :]


def truncation(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def lost_sector(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(0, len(content), 512)
    return content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]


def moved_page(content: bytes, chance: random.Random) -> bytes:
    size = 4096
    pages = [content[n : n + size] for n in range(0, len(content), size)]
    pages[chance.randrange(len(pages))] = chance.choice(pages)
    return b"".join(pages)


KINDS = (bit_flip, bit_flip, several_flips, garbage, truncation, lost_sector, moved_page)
