"""A text classifier of a dozen words, written by hand: the ONNX file, its tokenizer, its labels.

Other English words are a token for each letter to it, and those of other scripts all the same one.
The model gives each token two numbers and takes the highest of a row: `attack` makes it an attack.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    *(*SPECIAL, "attack", "maybe", "hello", "world", "the"),
    *(*LETTERS, *(f"##{letter}" for letter in LETTERS)),
)
WEIGHTS = {"attack": (-5.0, 5.0), "maybe": (0.0, 0.4)}
INT64, FLOAT = 7, 1


def _varint(number: int) -> bytes:
    out = b""
    while True:
        number, low = number >> 7, number & 0x7F
        out += bytes([low | (0x80 if number else 0)])
        if not number:
            return out


def _field(number: int, value: int | bytes | str) -> bytes:
    """Of a protobuf message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(name: str, kind: int, *dims: str | int) -> bytes:
    shape = b"".join(_field(1, _field(2, d) if isinstance(d, str) else _field(1, d)) for d in dims)
    tensor = _field(1, kind) + _field(2, shape)
    return _field(1, name) + _field(2, _field(1, tensor))


def _node(op: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    found = b"".join(_field(1, name) for name in inputs) + _field(2, output)
    return found + _field(4, op) + b"".join(_field(5, one) for one in attributes)


def _onnx(weights: list[tuple[float, ...]]) -> bytes:
    """`logits = max over tokens of weights[input_ids]`."""
    outputs = len(weights[0])
    raw = b"".join(struct.pack(f"<{outputs}f", *row) for row in weights)
    dims = _field(1, len(weights)) + _field(1, outputs)
    table = dims + _field(2, FLOAT) + _field(8, "table") + _field(9, raw)
    axes = _field(1, "axes") + _varint(8 << 3) + _varint(1) + _field(20, 7)
    keep = _field(1, "keepdims") + _field(3, 0) + _field(20, 2)
    graph = (
        _field(1, _node("Gather", ["table", "input_ids"], "rows"))
        + _field(1, _node("ReduceMax", ["rows"], "logits", axes, keep))
        + _field(2, "tiny")
        + _field(5, table)
        + _field(11, _value("input_ids", INT64, "batch", "tokens"))
        + _field(12, _value("logits", FLOAT, "batch", outputs))
    )
    opset = _field(1, "") + _field(2, 11)
    return _field(1, 6) + _field(7, graph) + _field(8, opset)


def write(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("SAFE", "INJECTION"),
    window: int = 16,
    config: dict[str, Any] | None = None,
    classifier: dict[str, Any] | None = None,
    outputs: int = 0,
) -> Path:
    """A folder as a hub has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    count = outputs or len(labels)
    rows = []
    for word in WORDS:
        low, high = WEIGHTS.get(word, (0.0, -5.0))
        if word in SPECIAL:
            low, high = -9.0, -9.0
        rows.append((low, *[high] * (count - 1)) if count > 1 else (high,))
    (folder / "model.onnx").write_bytes(_onnx(rows))
    known = {
        "id2label": {str(n): label for n, label in enumerate(labels)},
        "max_position_embeddings": window,
        "pad_token_id": 0,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(known))
    if classifier is not None:
        (folder / "classifier_config.json").write_text(json.dumps(classifier))
    return folder
