"""Spoiling a file: its bytes, its words, or what it is made of, with a given source of chance."""

import base64
import functools
import gzip
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib

# Where sizes wrap, signs turn and tables end.
_EDGES = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 2**24)
_EDGES += (2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1, -2)
_NUMBERS = ("0", "-1", "1.5", "1e5", "1e400", "-1e400", "nan", "inf", "NaN", "Infinity", "٣", "²")
_NUMBERS += ("65536", "2147483648", "-9223372036854775809", "9" * 400, "9" * 5000, "0x10", "1_0")
_TEXTS = ("", " ", "\0", "\n", "a" * 300, "a" * 70_000, "..", "../../etc/passwd", "/etc/passwd")
_TEXTS += ("\ud800", "\ufeff", "\u202e", "é", "e\u0301", "𝕏", "<unk>", "con", ".", "a/b", "\u2028")
_XML = (
    "<!DOCTYPE a SYSTEM 'file:///etc/passwd'>",
    "&amp;",
    "&x;",
    "&#0;",
    "&#x110000;",
    "<![CDATA[",
)
_XML += ("<?xml version='1.0' encoding='utf-7'?>", "<?xml version='1.0' encoding='none'?>", "<a>")
_XML += ("<?xml version='1.0' encoding='utf-16'?>", "<?xml version='1.1'?>", "<!--", "</a>", "<b/>")
_YAML = ("&a ", "*a", "<<: *a", "!!python/object:os.system ", "!!binary ", "2023-13-45", "? ", "- ")
_YAML += ("!!timestamp ", "!!int ", "!!float ", "!!set ", "|\n", "12:30:45", "---\n", "%YAML 9.9\n")
_YAML += ("names: &a [*a]", "[", "{", "&a [x, x]\nb: &b [*a, *a]", "~", "0b2", "!!omap ")
_MOST = 1_000_000
# What a file that was spoiled before raises where it has no such parts any more.
_NO_LONGER = (ValueError, LookupError, TypeError, OSError, EOFError, RuntimeError, struct.error)
_NO_LONGER += (zlib.error, zipfile.BadZipFile)
_WORDS = {"xml": _XML, "yaml": _YAML, "json": ("[", "{", "null", "1e999", '"\\ud800"', ":")}
_BOMBS = {
    "yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij"))
    + "names: *j\n",
    "xml": "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefghi", "bcdefghij"))
    + "]><annotation><object><name>&j;</name></object></annotation>",
    "json": "[" * 100_000,
}


def spoil(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Return a file that differs from a good one, of a megabyte at most.

    Args:
        content: the file.
        kind: `bytes`, `text`, `xml`, `yaml`, `json`; `zip`, of whose members one is spoiled;
            `gzip`, `png`, `safetensors` and `pieces`, whose checksums, lengths and codes stay
            right.
        chance: what is done to it.
    """
    how = _bytes
    if kind in ("text", "xml", "yaml", "json") and chance.random() < 0.7:
        how = functools.partial(_words, kind=kind)
    if kind in _WHOLE and chance.random() < 0.75:
        how = _WHOLE[kind]
    try:
        return how(content, chance=chance)[:_MOST]
    except _NO_LONGER:
        return _bytes(content, chance)[:_MOST]


def _bytes(content: bytes, chance: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 10))):
        # Headers stand at the beginning, tables of contents at the end.
        top = chance.choice((len(content), len(content), min(len(content), 200)))
        start = chance.randint(0, top)
        start = len(content) - start if chance.random() < 0.15 else start
        end = min(len(content), start + chance.choice((1, 2, 4, 8, 16, 64, 1024)))
        match chance.randint(0, 8):
            case 0 | 1 if start < len(content):
                content[start] ^= 1 << chance.randint(0, 7)
            case 2 if start < len(content):
                content[start] = chance.randint(0, 255)
            case 3 | 4:
                new = _edge(chance)
                content[start : start + len(new)] = new
            case 5:
                del content[start:end]
            case 6:
                content[start:start] = content[start:end] * chance.choice((1, 1, 2, 50))
            case 7:
                at = chance.randint(0, len(content))
                content[at : at + end - start] = content[start:end]
            case 8 if chance.random() < 0.3:
                del content[start:]
    return bytes(content)


def _edge(chance: random.Random) -> bytes:
    size = chance.choice((1, 2, 4, 4, 8))
    value = chance.choice(_EDGES) % 256**size
    return value.to_bytes(size, chance.choice(("little", "big")))


def _words(content: bytes, kind: str, chance: random.Random) -> bytes:
    if kind in _BOMBS and chance.random() < 0.005:
        return _BOMBS[kind].encode()
    cut = r"(<[^>]*>)" if kind == "xml" else r"([\w.+-]+|\n)"
    parts = [p for p in re.split(cut, content.decode("utf-8", "surrogateescape")) if p]
    for _ in range(chance.choice((1, 1, 2, 3))):
        i, j = (chance.randint(0, max(0, len(parts) - 1)) for _ in range(2))
        new = chance.choice((_NUMBERS, _TEXTS, _WORDS.get(kind, _NUMBERS)))
        match chance.randint(0, 6):
            case 0:
                del parts[i : i + 1]
            case 1:
                parts[i:i] = parts[min(i, j) : max(i, j)]
            case 2:
                del parts[min(i, j) : max(i, j)]
            case 3:
                parts[i:i] = [chance.choice(new)]
            case 4 | 5:
                parts[i : i + 1] = [chance.choice(new)]
            case 6:
                parts[i:i] = parts[j : j + 1] * chance.choice((2, 10, 3000))
    return "".join(parts).encode("utf-8", "surrogatepass" if chance.random() < 0.5 else "replace")


def _json(content: bytes, chance: random.Random) -> bytes:
    top = [json.loads(content)]
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = [*_places(top)]
        parent, key = chance.choice(places)
        match chance.randint(0, 6):
            case 0 if parent is not top:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[chance.choice((*_TEXTS, "name", "file"))] = parent.pop(key)
            case 2 if isinstance(parent, list):
                parent[key:key] = [parent[key]] * chance.choice((1, 2, 30))
            case 3:
                other, name = chance.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    # A copy: what holds itself cannot be written.
                    parent[key] = json.loads(json.dumps(other[name], default=str))
            case 4:
                parent[key] = [parent[key]] if chance.random() < 0.5 else {"a": parent[key]}
            case _:
                values = (*_TEXTS, *map(_Raw, _NUMBERS), None, True, False, [], {}, [[]], 0, -1, 3)
                parent[key] = chance.choice((*values, _Raw("[" * 2000 + "]" * 2000)))
    text = json.dumps(top[0], ensure_ascii=chance.random() < 0.5, default=str)
    return _RAW.sub(lambda found: found[1], text).encode("utf-8", "surrogatepass")


class _Raw:
    """What stands in the file as it is, such as numbers that Python does not write."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return f"<raw {self.text}>"


_RAW = re.compile(r'"<raw ([^"]*)>"')


def _places(value):
    """Yield all (list or dictionary, index or key) in a structure."""
    pairs = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _zip(content: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        members = [(info.filename, info.compress_type, archive.read(info)) for info in infos]
    i = chance.randint(0, len(members) - 1)
    name, packed, data = members[i]
    match chance.randint(0, 11):
        case 0:
            del members[i]
        case 1:
            members[i] = chance.choice((*_TEXTS[5:10], "x/../" + name)), packed, data
        case 2:
            members.append(members[i])
        case 3 if chance.random() < 0.1:
            members[i] = name, zipfile.ZIP_DEFLATED, bytes(50_000_000)
        case _:
            kind = "json" if name.endswith(".json") else "bytes"
            members[i] = name, packed, spoil(data, kind, chance)
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, packed, data in members:
            info = zipfile.ZipInfo(name.replace("\ud800", "?"))
            archive.writestr(info, data, packed)
    return result.getvalue()


def _gzip(content: bytes, chance: random.Random) -> bytes:
    return gzip.compress(spoil(gzip.decompress(content), "text", chance), 1, mtime=0)


def _png(content: bytes, chance: random.Random) -> bytes:
    """Spoil a chunk, and give each the checksum that it needs."""
    place, chunks = 8, []
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        chunks.append(content[place + 4 : place + 8 + size])
        place += 12 + size
    i, j = (chance.randint(0, len(chunks) - 1) for _ in range(2))
    match chance.randint(0, 9):
        case 0:
            del chunks[i]
        case 1:
            chunks.insert(j, chunks[i])
        case 2 if chunks[i][:4] == b"IDAT":
            pixels = _bytes(zlib.decompress(chunks[i][4:]), chance)
            chunks[i] = b"IDAT" + zlib.compress(pixels)
        case _:
            chunks[i] = _bytes(chunks[i], chance)
    parts = [struct.pack(">I", len(c[4:])) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return content[:8] + b"".join(parts)


def _safetensors(content: bytes, chance: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = spoil(content[8 : 8 + size], "json", chance)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def _pieces(content: bytes, chance: random.Random) -> bytes:
    """Spoil SentencePiece's own model in a vocabulary."""
    if chance.random() < 0.3:
        return _json(content, chance)
    described = json.loads(content)
    spoiled = _bytes(base64.b64decode(described["sentencepiece"]), chance)
    described["sentencepiece"] = base64.b64encode(spoiled).decode()
    return json.dumps(described).encode()


_WHOLE = {"json": _json, "zip": _zip, "gzip": _gzip, "png": _png, "safetensors": _safetensors}
_WHOLE |= {"pieces": _pieces}
