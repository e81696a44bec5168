#!/usr/bin/env python3
"""Writes the golden files that tests/ hold the encoder to, by the reference implementation.

    pip install sentence-transformers safetensors
    python3 crates/larder-encoder/tools/golden.py [MODEL]

MODEL is a folder with all-MiniLM-L6-v2; without it only the small files are written:

tests/golden/tiny/       a BERT of two layers with random weights, in the layout of sentence-transformers
tests/golden/tiny.json   texts, their token ids and their vectors, pooled by mean and by cls
tests/golden/words.txt   how `tokenizers` splits texts of every Unicode character: a hash per 1,024 characters
tests/golden/texts.json  1,000 texts
tests/golden/minilm.bin  for each of them a hash of its token ids (u64) and its vector, projected to 32 dimensions by
                         a matrix of random signs (f32): 136 bytes, all little endian
"""

import hashlib
import json
import random
import shutil
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
MASK = (1 << 64) - 1
DIMENSIONS = 32

WORDS = """account address airport alcohol android answer apple arrive balance bank battery because before bill book
bread bus cache cancel card cash change charge cheap check city clean client cloud code coffee cold colour company
compare computer cost country court credit customer dance data date delete deliver doctor dollar door driver early
email engine error exchange fail fast fee file flight food forget free garden girl glass gold guitar happy health
history hotel house insurance invoice island job key kitchen language late law learn letter library light limit loan
lock login lose machine map market medicine meeting money moon morning mother mountain music name network never night
number office open order paper park passport password pay pension phone piano pin plane police price print problem
query rain reader refund remove rent reset restaurant return river road safe salary school science sea seat server ship
shoe shop sleep slow snow speed start station stop store storm student subscription sugar summer tax teacher ticket
time top-up tower train transfer travel tree unlock update upload verify video visa wait wallet water weather website
weight window winter without withdraw work worker write wrong year young zebra""".split()
TEMPLATES = [
    "How do I {} my {}?", "Why was my {} {} declined?", "What is the {} of a {} in {}?", "I can't {} the {}",
    "Is the {} with or without {}?", "flights from {} to {}", "Tell me about {} {} and {}.", "{} {} {} {}",
    "Please {} the {} before {} {}", "my {} costs {} euros, not {}", "Can a {} be a {}? It isn't {}, is it?",
]
STRANGE = [
    "", " ", "\t\n", "a", "?", "...", "[MASK]", "a [SEP] b[CLS]c", "[UNK][PAD]", "[MASKED] [mask]", "x" * 100, "x" * 101,
    "naïve café Ångström", "NAI\u0308VE", "İstanbul ıİ", "straße ẞ ﬁ ﬀ", "中文字符 and English混合", "日本語のテスト",
    "한국어 테스트", "русский язык", "ελληνικά Σίσυφος", "עברית", "العربية", "ไทย", "हिन्दी", "😀 👩‍👩‍👧 🇩🇪", "zero\u200bwidth",
    "soft\u00adhyphen", "nul\0nul", "bom\ufeffbom", "\ufffd\ufffd", "line\u2028sep\u2029par", "no\u00a0break\u3000space",
    "e\u0301\u0327\u0316 q\u0307\u0323", "a\u0300" * 60, "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛", "½ ² ™ € $5 5% C++ c# a_b a-b", "don't “quote” «x»", "\U0001f1e6\U000e0041",
    "１２３ ＡＢＣ", "#hash @at http://example.org/a?b=c&d=e", "\r\nCRLF\r\n", "tab\tseparated\tvalues", "ǅ ŉ ΐ",
    "x " * 600, "word " * 253, "word " * 254, "word " * 255, "word " * 300, "un" * 40, "\ue000 private", "\U000e01ef", "\u0378 unassigned",
]


def mixed(n):
    """splitmix64: the only randomness that the tests repeat."""
    n = (n + 0x9E3779B97F4A7C15) & MASK
    n = ((n ^ (n >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    n = ((n ^ (n >> 27)) * 0x94D049BB133111EB) & MASK
    return n ^ (n >> 31)


def fnv(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def texts():
    random.seed(20)
    result = list(STRANGE)
    while len(result) < 700:
        template = random.choice(TEMPLATES)
        result.append(template.format(*(random.choice(WORDS) for _ in range(template.count("{}")))))
    while len(result) < 900:
        sentences = random.choice([1, 2, 3, 5, 8, 30])
        result.append(" ".join(" ".join(random.choices(WORDS, k=random.randint(3, 20))) + "." for _ in range(sentences)))
    assigned = [c for c in map(chr, range(0x20, 0x30000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    while len(result) < 1000:
        letters = random.choices(assigned, k=random.randint(1, 60))
        result.append("".join(c + random.choice(["", "", "", " "]) for c in letters))
    return result


def words():
    normalizer = normalizers.BertNormalizer()
    splitter = pre_tokenizers.BertPreTokenizer()
    lines = []
    for begin in range(0, 0x110000, 1024):
        block = []
        for code in range(begin, begin + 1024):
            if not 0xD800 <= code < 0xE000:
                c = chr(code)
                # Alone, inside of a word, doubled after a letter, and among marks of several classes.
                text = f"{c} A{c}b É{c}{c} x\u0316{c}\u0301y"
                split = splitter.pre_tokenize_str(normalizer.normalize_str(text))
                block.append("\x1f".join(word for word, _ in split))
        lines.append(f"{fnv(chr(0x1E).join(block).encode()):016x}")
    (GOLDEN / "words.txt").write_text("\n".join(lines) + "\n")


def tiny():
    shutil.rmtree(GOLDEN / "tiny", ignore_errors=True)
    folder = GOLDEN / "tiny"
    (folder / "1_Pooling").mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(0x21, 0x7F) if not chr(c).isupper()] + list("éß中äж")
    pieces = [w[:n] for w in WORDS[:60] for n in (3,)] + ["##" + w[3:] for w in WORDS[:60] if len(w) > 3]
    vocabulary = list(dict.fromkeys(special + letters + ["##" + c for c in letters if c.isalnum()] + pieces))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=80,
        max_position_embeddings=64, type_vocab_size=2,
    )
    torch.manual_seed(7)
    model = BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        # Larger than at the start of a training, so that no part is lost beside the others.
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25 + (0.5 if parameter.ndim == 1 else 0)
    tensors = {name: value.numpy() for name, value in model.state_dict().items() if "position_ids" not in name}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, str(folder / "model.safetensors"))
    kept = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
            "type_vocab_size", "layer_norm_eps", "hidden_act", "vocab_size"]
    settings = {"model_type": "bert", "architectures": ["BertModel"]} | {name: getattr(config, name) for name in kept}
    write(folder / "config.json", settings)
    write(folder / "tokenizer_config.json", {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 40})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    kinds = ["Transformer", "Pooling", "Normalize"]
    write(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": ["", "1_Pooling", "2_Normalize"][i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ])

    outcome = []
    for mode in ["mean", "cls"]:
        pooling = {"word_embedding_dimension": 48, "pooling_mode_cls_token": mode == "cls",
                   "pooling_mode_mean_tokens": mode == "mean", "pooling_mode_max_tokens": False,
                   "pooling_mode_mean_sqrt_len_tokens": False}
        write(folder / "1_Pooling" / "config.json", pooling)
        reference = SentenceTransformer(str(folder), device="cpu")
        chosen = [t for t in STRANGE if len(t) < 200] + ["How do I cancel my account?", "account balance", "bill " * 29, "bill " * 30, "bill " * 31]
        vectors = reference.encode(chosen, batch_size=1)
        for index, text in enumerate(chosen):
            if mode == "mean":
                ids = reference.tokenizer(text, truncation=True, max_length=32)["input_ids"]
                outcome.append({"text": text, "ids": ids})
            outcome[index][mode] = [round(float(x), 7) for x in vectors[index]]
    mean = json.loads((folder / "1_Pooling" / "config.json").read_text())
    write(folder / "1_Pooling" / "config.json", mean | {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    lines = ",\n".join(json.dumps(row) for row in outcome)
    (GOLDEN / "tiny.json").write_text(f"[\n{lines}\n]\n")


def minilm(folder):
    reference = SentenceTransformer(folder, device="cpu")
    chosen = texts()
    write(GOLDEN / "texts.json", chosen)
    vectors = reference.encode(chosen, batch_size=1)
    np.save("/tmp/minilm-reference.npy", vectors)
    signs = np.array([[1.0 if mixed(i * DIMENSIONS + j) & 1 else -1.0 for j in range(DIMENSIONS)] for i in range(vectors.shape[1])])
    projected = (vectors.astype(np.float64) @ signs / np.sqrt(DIMENSIONS)).astype("<f4")
    with open(GOLDEN / "minilm.bin", "wb") as out:
        for text, row in zip(chosen, projected):
            ids = reference.tokenizer(text, truncation=True, max_length=256)["input_ids"]
            out.write(struct.pack("<Q", fnv(b"".join(struct.pack("<I", i) for i in ids))) + row.tobytes())


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=1 if isinstance(value, list) else None) + "\n")


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    words()
    tiny()
    if len(sys.argv) > 1:
        minilm(sys.argv[1])
    for path in sorted(GOLDEN.rglob("*")):
        if path.is_file():
            print(hashlib.sha256(path.read_bytes()).hexdigest()[:16], path.stat().st_size, path.relative_to(GOLDEN))
