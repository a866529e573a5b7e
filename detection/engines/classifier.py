"""A text classifier in ONNX: a folder with a model, its tokenizer and its configuration.

Read from the folder are the labels (`config.json`), the length of a window and how texts are cut
into tokens (`tokenizer.json`), and the temperature of the scores (`classifier_config.json` or
`config.json`). Known are classifiers of two labels, such as Prompt Guard 2, ProtectAI's DeBERTa and
DistilBERTs, those with one score, and the two-headed MiniLM of the package `stackone-defender`.

Stands alone, without Django and without the gateway: `engines/server.py` runs in a small process.
onnxruntime, tokenizers and numpy are imported when a model is loaded (`requirements/engine.txt`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detection.content_types import CUT, NO_RULES

LIBRARIES = ("onnxruntime", "tokenizers", "numpy")
MODEL_BYTES_MAX = 1 << 30
FILES = ("model_quantized.onnx", "model_int8.onnx", "model_quint8.onnx", "model.onnx")
FOLDERS = ("", "onnx")
WINDOW_TOKENS_MAX = 512
WINDOW_TOKENS_OF_DATA = 128
"""An order in a document is a sentence among many: it drowns in a window of a whole page."""
WINDOWS_MAX = 64
OVERLAP = 0.25
ROWS_AT_ONCE = 8
ATTACK = re.compile(r"inject|jailbreak|malicious|attack|unsafe|harmful|LABEL_1\Z", re.IGNORECASE)
HARMLESS = re.compile(
    r"benign|\bsafe|legit|clean|harmless|normal|no[_ -]?inject|LABEL_0\Z", re.IGNORECASE
)
LFS = b"version https://git-lfs"
SURE = 0.6
"""What a two-headed model's own operating point is brought to: our default threshold."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")


class ModelUnusable(Exception):
    """A model cannot be used; the sentence says why, and what to do."""


class NoScore(Exception):
    """What the model answers to this text is no finite number."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a loaded model: `version` changes with its weights."""

    name: str
    version: str
    labels: tuple[str, ...]
    window_tokens: int
    model_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """`score` is 0..1 for an attack, or NaN where the model gives no finite number; `start` and
    `end` are where the highest window stood, in characters. `scanned_chars` is less than all when
    the text has more than `WINDOWS_MAX`, or letters that the model has no token for; `unseen` says
    which."""

    score: float
    start: int
    end: int
    scanned_chars: int
    unseen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """One window of one text."""

    text: int
    start: int
    end: int
    ids: list[int]


def missing_libraries() -> list[str]:
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def find_folder(name: str) -> Path:
    """The folder that `name` is, or the hub's model of that name, fetched. Raises
    `ModelUnusable`."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not HUB_NAME.match(name):
        raise ModelUnusable(f"There is no folder {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as exc:
        raise ModelUnusable(
            f"There is no folder {name}, and to fetch a model of that name from the hub the "
            "package huggingface-hub is needed"
        ) from exc
    wanted = ["*.json", "*.onnx", "*.onnx_data", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as exc:
        raise ModelUnusable(
            f"The model {name} could not be fetched: {type(exc).__name__}. Name a folder that has "
            "it, if this machine does not reach the hub"
        ) from exc


class Classifier:
    """One loaded model. Its calls are for threads: they compute, and let others run meanwhile."""

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        file: str = "",
        attack: Sequence[str] = (),
        model_bytes_max: int = MODEL_BYTES_MAX,
    ) -> None:
        """Raises `ModelUnusable`."""
        if missing := missing_libraries():
            raise ModelUnusable(
                f"{', '.join(missing)} is not installed: pip install -r requirements/engine.txt"
            )
        folder = find_folder(name)
        config = _json(folder / "config.json", needed=True)
        extra = _json(folder / "classifier_config.json")
        model = _model_file(folder, file)
        size = sum(part.stat().st_size for part in model.parent.glob(f"{model.name}*"))
        if size > model_bytes_max:
            raise ModelUnusable(
                f"{model} is {size >> 20} MiB, more than the {model_bytes_max >> 20} MiB that are "
                "allowed here: use a quantized one (model_quantized.onnx), or allow more"
            )
        self._load(folder, model, config, threads)
        self._pad = int(config.get("pad_token_id") or 0)
        self._two_heads = _presets(extra) if extra.get("multi_head") else None
        labels = self._read_labels(config, attack)
        self._temperature = _temperature(config, extra)
        self._check(name)
        self.facts = Facts(
            name=folder.name if Path(name).is_dir() else name,
            version=_digest(model),
            labels=labels,
            window_tokens=self._window,
            model_bytes=size,
        )

    def _load(self, folder: Path, model: Path, config: dict[str, Any], threads: int) -> None:
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        self._numpy = numpy
        tokens = folder / "tokenizer.json"
        if not tokens.is_file():
            raise ModelUnusable(
                f"{folder} has no tokenizer.json. Save it there: "
                "AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers writes it"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(tokens))
        except Exception as exc:
            raise ModelUnusable(f"{tokens} cannot be read: {exc}") from exc
        truncation = self._tokenizer.truncation
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Without this its threads spin while they wait, and take the other processes' time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:
            raise ModelUnusable(f"{model} is no model that onnxruntime reads: {exc}") from exc
        self._inputs = {one.name for one in self._session.get_inputs()}
        unknown = self._inputs - {"input_ids", "attention_mask", "token_type_ids"}
        if "input_ids" not in self._inputs or unknown:
            raise ModelUnusable(
                f"{model} wants {', '.join(sorted(self._inputs))}. A text classifier takes "
                "input_ids, attention_mask and perhaps token_type_ids"
            )
        self._unknown = _unknown_token(_json(tokens)["model"])
        self._head, self._tail = self._specials()
        self._window = self._window_tokens(folder, config, truncation)

    def _specials(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        for at in range(len(whole) - len(bare) + 1):
            if whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def _window_tokens(
        self, folder: Path, config: dict[str, Any], truncation: dict[str, Any] | None
    ) -> int:
        """Of the text itself, in one window: as many as the model was made for."""
        known = [
            (truncation or {}).get("max_length"),
            _json(folder / "tokenizer_config.json").get("model_max_length"),
            config.get("max_position_embeddings"),
            WINDOW_TOKENS_MAX,
        ]
        whole = min(int(one) for one in known if isinstance(one, int | float) and one > 0)
        return max(8, whole - len(self._head) - len(self._tail))

    def _read_labels(self, config: dict[str, Any], attack: Sequence[str]) -> tuple[str, ...]:
        """Which of the outputs stand for an attack (`_attacks`). Raises `ModelUnusable`."""
        if self._two_heads is not None:
            self._attacks: list[int] = [0, 1]
            return ("main", "aux")
        named = config.get("id2label")
        if not isinstance(named, dict) or not named:
            if config.get("num_labels") == 1:
                self._attacks = [0]
                return ("attack",)
            raise ModelUnusable("config.json names no labels (id2label): is it a classifier?")
        labels = tuple(str(named[key]) for key in sorted(named, key=int))
        if attack:
            unknown = [one for one in attack if one not in labels]
            if unknown:
                raise ModelUnusable(f"It has no label {unknown[0]}: {', '.join(labels)}")
            self._attacks = [labels.index(one) for one in attack]
        elif len(labels) == 1:
            self._attacks = [0]
        elif len(labels) > 2:
            raise ModelUnusable(
                f"It has {len(labels)} labels ({', '.join(labels)}), and which of them are attacks "
                f"is not ours to guess: say so, as in attack={labels[1]}"
            )
        else:
            self._attacks = [
                number
                for number, label in enumerate(labels)
                if ATTACK.search(label) and not HARMLESS.search(label)
            ]
            if len(self._attacks) != 1:
                raise ModelUnusable(
                    f"Which of its labels is the attack? ({', '.join(labels)}) Say so, as in "
                    f"attack={labels[1]}"
                )
        return labels

    def _check(self, name: str) -> None:
        """One run, which also warms it up. Raises `ModelUnusable`."""
        try:
            logits = self._run([_Row(0, 0, 1, self._encoded("hello")[0])])
        except Exception as exc:
            raise ModelUnusable(f"The model of {name} does not run: {exc}") from exc
        outputs = logits.shape[-1] if logits.ndim == 2 else 0
        if not self._numpy.isfinite(logits).all():
            raise ModelUnusable(
                f"The model of {name} answers with no finite numbers. Export it again, unquantized "
                "or quantized in another way"
            )
        wanted = 2 if self._two_heads is not None else len(self._attacks) + 1
        if logits.ndim != 2 or not (outputs == 1 or outputs >= wanted):
            raise ModelUnusable(
                f"The model of {name} answers {logits.shape}, where a classifier of texts answers "
                "a row of scores for each text"
            )

    # -- Judging ----------------------------------------------------------------------------------

    def judge(self, text: str, *, is_data: bool = False) -> Found:
        return self.judge_many([(text, is_data)])[0]

    def judge_many(self, texts: Sequence[tuple[str, bool]]) -> list[Found]:
        """Each text with whether it is data, which is read in smaller windows. Windows of several
        texts run together, those of a length side by side."""
        rows: list[_Row] = []
        found: list[Found] = []
        for number, (text, is_data) in enumerate(texts):
            own, unknown = self._rows(number, text, is_data=is_data)
            rows += own
            covered = _union(own)
            unseen = [CUT] if covered < len(text) else []
            if unknown:
                unseen.append(NO_RULES)
            found.append(Found(0.0, 0, 0, max(0, covered - unknown), tuple(unseen)))
        order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
        scores = [0.0] * len(rows)
        for first in range(0, len(order), ROWS_AT_ONCE):
            some = order[first : first + ROWS_AT_ONCE]
            for at, score in zip(
                some, self._scores(self._run([rows[i] for i in some])), strict=True
            ):
                scores[at] = score
        for row, score in zip(rows, scores, strict=True):
            if score > found[row.text].score or math.isnan(score):
                found[row.text] = replace(
                    found[row.text], score=score, start=row.start, end=row.end
                )
        return found

    def _encoded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _rows(self, number: int, text: str, *, is_data: bool) -> tuple[list[_Row], int]:
        """Its windows, and how many of its letters are in words that are all one to the model."""
        ids, offsets = self._encoded(text)
        unknown = sum(
            sum(map(str.isalpha, text[start:end]))
            for token, (start, end) in zip(ids, offsets, strict=True)
            if token == self._unknown
        )
        size = min(self._window, WINDOW_TOKENS_OF_DATA) if is_data else self._window
        stride = max(1, int(size * (1 - OVERLAP)))
        if len(ids) > size and (len(ids) - size) / stride > WINDOWS_MAX - 1:
            size, stride = self._window, max(1, int(self._window * (1 - OVERLAP)))
        starts = list(range(0, max(1, len(ids) - size), stride))
        if len(ids) > size:
            # Head and tail first, so that neither can be pushed out by what is between.
            starts = [0, len(ids) - size, *starts[1 : WINDOWS_MAX - 1]]
        rows = []
        for start in starts:
            part = ids[start : start + size]
            begin = offsets[start][0] if offsets else 0
            end = offsets[start + len(part) - 1][1] if part else 0
            if start == 0:
                begin = 0
            if start + len(part) >= len(ids):
                end = len(text)
            rows.append(_Row(number, begin, end, part))
        return rows, unknown

    def _run(self, rows: Sequence[_Row]) -> Any:
        numpy = self._numpy
        whole = [[*self._head, *row.ids, *self._tail] for row in rows]
        width = max(1, *(len(ids) for ids in whole))
        input_ids = numpy.full((len(rows), width), self._pad, dtype=numpy.int64)
        mask = numpy.zeros((len(rows), width), dtype=numpy.int64)
        for number, ids in enumerate(whole):
            input_ids[number, : len(ids)] = ids
            mask[number, : len(ids)] = 1
        given = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "token_type_ids": numpy.zeros_like(mask),
        }
        return self._session.run(None, {name: given[name] for name in self._inputs})[0]

    def _scores(self, logits: Any) -> list[float]:
        return [
            self._score([float(value) / self._temperature for value in row])
            if all(map(math.isfinite, row))
            else math.nan
            for row in logits
        ]

    def _score(self, row: Sequence[float]) -> float:
        if self._two_heads is not None:
            (main, aux), (main_at, aux_at) = row, self._two_heads
            return min(_brought(_sigmoid(main), main_at), _brought(_sigmoid(-aux), 1 - aux_at))
        if len(row) == 1:
            return _sigmoid(row[0])
        parts = _softmax(row)
        return sum(parts[at] for at in self._attacks)


def _unknown_token(model: dict[str, Any]) -> int | None:
    """The token that stands for any word that a tokenizer does not know, if it has such a one."""
    # The vocabulary of Unigram is a list.
    found = model["unk_id"] if "unk_id" in model else model["vocab"].get(model.get("unk_token"))
    return None if found is None else int(found)


def _union(rows: Sequence[_Row]) -> int:
    count = reached = 0
    for start, end in sorted((row.start, row.end) for row in rows):
        if end > reached:
            count += end - max(start, reached)
            reached = end
    return count


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))


def _softmax(row: Sequence[float]) -> list[float]:
    most = max(row)
    parts = [math.exp(value - most) for value in row]
    return [part / sum(parts) for part in parts]


def _brought(probability: float, operating_point: float) -> float:
    """Straight lines that bring the point where the model itself would flag to `SURE`."""
    if probability < operating_point:
        return SURE * probability / operating_point
    return SURE + (1 - SURE) * (probability - operating_point) / (1 - operating_point)


def _model_file(folder: Path, file: str) -> Path:
    places = [folder / file] if file else [folder / sub / name for sub in FOLDERS for name in FILES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ModelUnusable(
            f"{folder} has no {file or ' or '.join(FILES)}: export the model to ONNX, for example "
            "with optimum-cli"
        )
    with found.open("rb") as opened:
        if opened.read(len(LFS)) == LFS:
            raise ModelUnusable(f"{found} is only a pointer of Git LFS: fetch the file itself")
    return found


def _json(path: Path, *, needed: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise ModelUnusable(f"{path.parent} has no {path.name}, which names the labels")
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as exc:
        raise ModelUnusable(f"{path} is no JSON") from exc
    if not isinstance(found, dict):
        raise ModelUnusable(f"{path} is no JSON object")
    return found


def _presets(extra: dict[str, Any]) -> tuple[float, float]:
    """From which probability on the first head finds an attack, and the second head forbids it."""
    try:
        medium = extra["multihead_presets"]["Medium"]
        points = float(medium["mainThreshold"]), float(medium["auxThreshold"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelUnusable("classifier_config.json has two heads but no thresholds") from exc
    if not all(0 < point < 1 for point in points):
        raise ModelUnusable("classifier_config.json has thresholds that are not between 0 and 1")
    return points


def _temperature(config: dict[str, Any], extra: dict[str, Any]) -> float:
    calibration = extra.get("calibration")
    found = calibration.get("temperatureT") if isinstance(calibration, dict) else None
    if found is None:
        found = extra.get("temperature", config.get("temperature", 1.0))
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ModelUnusable("The temperature of its configuration is no number")
    if not (math.isfinite(found) and found > 0):
        raise ModelUnusable(f"The temperature of its configuration is {found}, not above 0")
    return float(found)


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
