"""Loads an object file for 64-bit Arm into an emulated processor's memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

import unicorn

_CODE, _ROOM = 0x10_0000, 0x40_0000


class Loader:
    """Loads the sections of an ELF object and resolves their relocations.

    Attributes:
        symbols: addresses of what the object defines.
    """

    def __init__(self, uc: unicorn.Uc, data: bytes, external: Callable[[str], int]) -> None:
        self._uc, self._data, self._external = uc, data, external
        self._known: dict[str, int] = {}
        self._got: dict[int, int] = {}
        uc.mem_map(_CODE, _ROOM)
        (table,) = struct.unpack_from("<Q", data, 0x28)
        (count,) = struct.unpack_from("<H", data, 0x3C)
        # name, type, flags, address, offset, size, link, info, alignment, entry size
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        self._places: dict[int, int] = {}
        end = _CODE
        for i, (_, kind, flags, _, offset, size, _, _, alignment, _) in enumerate(sections):
            if not flags & 2:  # takes no memory
                continue
            self._places[i] = end = -(-end // alignment) * alignment
            if kind != 8:  # not just zeros
                uc.mem_write(end, data[offset : offset + size])
            end += size
        self._end = -(-end // 16) * 16
        symbols = next(s for s in sections if s[1] == 2)
        self._strings = sections[symbols[6]][4]
        self._entries = [
            struct.unpack_from("<IBBHQQ", data, symbols[4] + 24 * i)
            for i in range(symbols[5] // 24)
        ]
        self.symbols = {
            self._name(e): self._places[e[3]] + e[4] for e in self._entries if e[3] in self._places
        }
        for section in sections:
            if section[1] == 4 and section[7] in self._places:
                for i in range(section[5] // 24):
                    self._relocate(self._places[section[7]], section[4] + 24 * i)
        for name, place in self.symbols.items():
            if name.startswith("__TVM"):  # TVM's runtime puts its functions' addresses there
                uc.mem_write(place, struct.pack("<Q", external(name.lstrip("_"))))

    def _name(self, entry: tuple[int, ...]) -> str:
        start = self._strings + entry[0]
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _address(self, number: int) -> int:
        entry = self._entries[number]
        if entry[3]:
            return self._places[entry[3]] + entry[4]
        name = self._name(entry)
        if name not in self._known:
            self._known[name] = self._external(name)
        return self._known[name]

    def _relocate(self, base: int, entry: int) -> None:
        offset, info, addend = struct.unpack_from("<QQq", self._data, entry)
        place, kind = base + offset, info & 0xFFFFFFFF
        target = self._address(info >> 32) + addend
        (word,) = struct.unpack("<I", self._uc.mem_read(place, 4))
        if kind in {311, 312}:  # through a table of addresses
            slot = self._got.setdefault(target, self._end)
            if slot == self._end:
                self._uc.mem_write(slot, struct.pack("<Q", target))
                self._end += 8
            target, kind = slot, {311: 275, 312: 286}[kind]
        if kind == 257:  # ABS64
            self._uc.mem_write(place, struct.pack("<Q", target))
            return
        if kind == 261:  # PREL32
            word = (target - place) & 0xFFFFFFFF
        elif kind in {282, 283}:  # JUMP26, CALL26
            word |= (target - place) >> 2 & 0x3FFFFFF
        elif kind == 275:  # ADR_PREL_PG_HI21
            pages = (target >> 12) - (place >> 12)
            word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        else:  # the low 12 bits, in units of what is loaded: ADD, LDST8, 16, 32, 64, 128
            unit = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}[kind]
            word |= (target & 0xFFF) >> unit << 10
        self._uc.mem_write(place, struct.pack("<I", word))
