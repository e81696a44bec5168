"""A second implementation of the key encoding and of envelope version 1, written from the tables in the docs.

Checks the golden vectors beside it; no test needs it. pip install xxhash lz4 zstandard msgpack
"""
import hashlib, json, pathlib, struct
import lz4.block, msgpack, xxhash, zstandard

HERE = pathlib.Path(__file__).parent
END = b"\0"


def length(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


def text(s, outermost=False):
    raw = s.encode()
    return b"\x05" + (raw if outermost else length(len(raw)) + raw)


def num(tag, size, n):
    return bytes([tag]) + n.to_bytes(size, "big", signed=n < 0)


def long(encoding, start):
    raw = start.encode()[:128]
    return b"\x7f" + hashlib.sha256(encoding).digest() + raw.decode(errors="ignore").encode()


TUPLE = b"\x21" + text("a") + num(0x18, 1, 1) + b"\x01" + END
KEYS = {
    "empty": text("", True),
    "str": text("user:é", True),
    "bytes": b"\x06\x00\xff",
    "unit": b"\x01",
    "true": b"\x03",
    "char": b"\x04" + struct.pack(">I", ord("é")),
    "i8": num(0x10, 1, -1),
    "i32": num(0x12, 4, -2),
    "i64": num(0x13, 8, -(2**63)),
    "i128": num(0x14, 16, -1),
    "u8": num(0x18, 1, 255),
    "u64": num(0x1B, 8, 1),
    "u128": num(0x1C, 16, 2**128 - 1),
    "f32": b"\x1e" + struct.pack(">f", 0.0),
    "f64": b"\x1f\x7f\xf8" + bytes(6),
    "none": b"\x07",
    "some": b"\x08" + text("a"),
    "tuple": TUPLE,
    "seq": b"\x20" + num(0x19, 2, 1) + num(0x19, 2, 2) + END,
    "map": b"\x22" + b"".join(text(k) + num(0x18, 1, v) for k, v in [("a", 2), ("bb", 1), ("ccc", 3)]) + END,
    "struct": b"\x2b" + text("User") + text("id") + num(0x1B, 8, 7) + text("name") + text("x") + END,
    "newtype": b"\x29" + text("Id") + num(0x1B, 8, 7),
    "unit_variant": b"\x30" + text("By") + text("All"),
    "newtype_variant": b"\x31" + text("By") + text("Name") + text("x"),
    "tuple_variant": b"\x32" + text("By") + text("Range") + num(0x18, 1, 1) + num(0x18, 1, 2) + END,
    "struct_variant": b"\x33" + text("By") + text("Page") + text("from") + num(0x18, 1, 1) + text("to")
    + num(0x18, 1, 2) + END,
    "length_200": b"\x21" + text("é" * 100) + num(0x18, 1, 1) + END,
    "at_limit": text("x" * 1023, True),
    "long": long(text("é" * 600, True), "é" * 600),
    "long_tuple": long(b"\x21" + text("a") + text("x" * 2000) + END, "a:" + "x" * 2000),
}


def vectors(name):
    lines = (HERE / name).read_text().splitlines()
    return [line.split(" ") for line in lines if not line.startswith("#")]


found = vectors("keys-v1.txt")
assert [name for name, _, _ in found] == list(KEYS)
for name, encoding, hash64 in found:
    assert encoding == KEYS[name].hex(), (name, encoding, KEYS[name].hex())
    seed = xxhash.xxh3_64_intdigest(b"users")
    assert hash64 == xxhash.xxh3_64_hexdigest(KEYS[name], seed), name

ada = "Ada " * 20
PLAIN = {
    "postcard": b"\x07" + length(len(ada)) + ada.encode(),
    "msgpack": msgpack.packb({"id": 7, "name": ada}),
    "json": json.dumps({"id": 7, "name": ada}, separators=(",", ":")).encode(),
}
for name, sealed in vectors("envelope-v1.txt"):
    sealed = bytes.fromhex(sealed)
    codec, compression = name.split("-")
    plain = b"" if compression == "absent" else PLAIN[codec]
    tags = b"".join(struct.pack("<H", len(tag)) + tag for tag in [b"de", b"user:7"])
    payload = sealed[84 + len(tags) : -8]
    if compression == "lz4":
        assert lz4.block.decompress(payload, uncompressed_size=len(plain)) == plain, name
    elif compression == "zstd":
        assert zstandard.ZstdDecompressor().decompress(payload) == plain, name
    else:
        payload = plain
    now = 1_767_225_600_000
    body = b"LRDR" + bytes([1, compression == "absent"])
    body += bytes([list(PLAIN).index(codec) + 1, {"lz4": 1, "zstd": 2}.get(compression, 0)])
    body += struct.pack("<IBBHI", 0, 1, 2, len(tags), 0)
    body += struct.pack(">QI", now << 16 | 3, 0xDEADBEEF)
    body += struct.pack("<QQQQ", now, now + 60_000, now + 120_000, 2**64 - 1)
    body += struct.pack("<QIII", xxhash.xxh3_64_intdigest(b"user/1"), 12, len(plain), len(payload))
    assert len(body) == 84
    body += tags + payload
    covered = bytes([5]) + b"users" + struct.pack("<I", len(TUPLE)) + TUPLE + body
    assert sealed == body + struct.pack("<Q", xxhash.xxh3_64_intdigest(covered)), name

print(f"{len(found)} keys and {len(vectors('envelope-v1.txt'))} envelopes agree")
