"""A second implementation of protected envelopes (version 1) and of the keys that protect them, written from the
tables in the docs of larder::envelope. Needs nothing but Python: AES-256-GCM is written out here, and checked by
two vectors of the GCM specification (McGrew and Viega, test cases 13 and 14); HKDF by RFC 5869, A.1.

Prints the vectors, without the 8 bytes of their checksums; with the argument --check compares them with
protected-v1.txt beside it.
"""
import hashlib, hmac, pathlib, struct, sys

# --- AES-256-GCM


def double(a):
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def multiply(a, b):
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a, b = double(a), b >> 1
    return out


def substitution():
    box = []
    for byte in range(256):
        inverse = next((x for x in range(256) if multiply(byte, x) == 1), 0)
        rotated = [(inverse << n | inverse >> 8 - n) & 0xFF for n in range(5)]
        box.append(rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63)
    return bytes(box)


BOX = substitution()


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def round_keys(key):
    words, constant = [key[i : i + 4] for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = word[1:] + word[:1]
        if i % 4 == 0:
            word = bytes(BOX[byte] for byte in word)
        if i % 8 == 0:
            word, constant = xor(word, bytes([constant, 0, 0, 0])), double(constant)
        words.append(xor(words[i - 8], word))
    return [b"".join(words[i : i + 4]) for i in range(0, 60, 4)]


def encrypt_block(keys, block):
    state = xor(block, keys[0])
    for number, key in enumerate(keys[1:], 1):
        state = bytes(BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16))
        if number < 14:
            mixed = []
            for column in range(0, 16, 4):
                for row in range(4):
                    a, b, c, d = (state[column + (row + n) % 4] for n in range(4))
                    mixed.append(double(a) ^ double(b) ^ b ^ c ^ d)
            state = bytes(mixed)
        state = xor(state, key)
    return state


def gcm_multiply(a, b):
    out = 0
    for bit in range(127, -1, -1):
        out ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (0xE1 << 120 if b & 1 else 0)
    return out


def gcm_seal(key, nonce, plain, associated):
    keys = round_keys(key)
    stream = lambda n: encrypt_block(keys, nonce + struct.pack(">I", n))
    out = b"".join(xor(plain[i : i + 16], stream(2 + i // 16)) for i in range(0, len(plain), 16))
    pad = lambda data: data + bytes(-len(data) % 16)
    hashed = pad(associated) + pad(out) + struct.pack(">QQ", 8 * len(associated), 8 * len(out))
    h, tag = int.from_bytes(encrypt_block(keys, bytes(16)), "big"), 0
    for i in range(0, len(hashed), 16):
        tag = gcm_multiply(tag ^ int.from_bytes(hashed[i : i + 16], "big"), h)
    return out, xor(tag.to_bytes(16, "big"), stream(1))


assert gcm_seal(bytes(32), bytes(12), b"", b"")[1].hex() == "530f8afbc74536b9a963b4f1c4cb738b"
assert [part.hex() for part in gcm_seal(bytes(32), bytes(12), bytes(16), b"")] == [
    "cea7403d4d606b6e074ec5d3baf39d18",
    "d0d1c8a799996bf0265b98b5d48ab919",
]

# --- Keys


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def expand(key, info, length=32):
    assert length <= 32
    return mac(key, info + b"\1")[:length]


okm = expand(mac(bytes(range(13)), b"\x0b" * 22), bytes(range(0xF0, 0xFA)))
assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"

SECRET = bytes(range(1, 33))
NAMES = bytes(range(101, 133))
NAMESPACE = b"users"
SALT = bytes(range(200, 216))
NOW = 1_767_225_600_000


def root(secret):
    return mac(b"larder envelope v1", secret)


def of_namespace(secret, purpose):
    return expand(root(secret), purpose + b"\0" + NAMESPACE)


def key_id(secret):
    return max(1, int.from_bytes(expand(root(secret), b"larder key id", 4), "big"))


# --- Envelopes. The key is ("a", 1u8, ()), as in the other vectors; the type's schema is "user/1".
KEY = bytes.fromhex("210501611801") + b"\x01\x00"
ADA = "Ada " * 20
PLAIN = b"\x07" + bytes([len(ADA)]) + ADA.encode()
# XXH3-64 of "user/1"
FINGERPRINT = bytes.fromhex("3dde8e11b89710a4")


def head(plain, is_signed):
    tags = b"".join(struct.pack("<H", len(tag)) + tag for tag in [b"de", b"user:7"])
    out = b"LRDR" + bytes([1, (not plain) | is_signed << 1, 1, 0])
    out += struct.pack("<IBBHI", key_id(SECRET), 1, 2, len(tags), 32)
    out += struct.pack(">QI", NOW << 16 | 3, 0xDEADBEEF)
    out += struct.pack("<QQQQ", NOW, NOW + 60_000, NOW + 120_000, 2**64 - 1)
    out += FINGERPRINT + struct.pack("<III", 12, len(plain), len(plain))
    assert len(out) == 84
    return out + tags


def associated(head):
    return struct.pack("<H", len(NAMESPACE)) + NAMESPACE + struct.pack("<I", len(KEY)) + KEY + head


def encrypted(plain):
    start = head(plain, False)
    key = expand(of_namespace(SECRET, b"larder encrypt"), b"larder entry" + SALT)
    out, tag = gcm_seal(key, bytes(12), plain, associated(start))
    return start + SALT + tag + out


def signed(plain):
    start = head(plain, True)
    return start + mac(of_namespace(SECRET, b"larder sign"), associated(start) + plain) + plain


VECTORS = {
    "key-id": struct.pack(">I", key_id(SECRET)),
    "hidden-name": b"\x06" + mac(of_namespace(NAMES, b"larder names"), KEY),
    "encrypted": encrypted(PLAIN),
    "encrypted-absent": encrypted(b""),
    "signed": signed(PLAIN),
    "signed-absent": signed(b""),
}
lines = [f"{name} {vector.hex()}" for name, vector in VECTORS.items()]
if sys.argv[1:] == ["--check"]:
    golden = (pathlib.Path(__file__).parent / "protected-v1.txt").read_text().splitlines()
    assert [line for line in golden if not line.startswith("#")] == lines
    print(f"{len(lines)} protected vectors agree")
else:
    print("\n".join(lines))
