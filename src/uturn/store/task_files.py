"""The file of a task, in the format safetensors: its readings as plain arrays, and what they are
readings of.

A file is whole if its digest fits its arrays and their description. The digest guards against
damage and against files that were moved. It does not guard against strangers, who can write any
numbers. Their files run no code, and hold as many bytes as they say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from safetensors.numpy import load, save

_KEY = "task"
"""The only entry of the metadata; safetensors would write several in a random order."""


@dataclass(frozen=True)
class About:
    """What the readings of a file are readings of."""

    run: str
    """Key of the run."""
    noise: float
    first_item: int
    last_item: int
    trajectories: int


@dataclass(frozen=True)
class TaskFile:
    """The readings of a task, {variable: array (items, ..)}."""

    about: About
    readings: Mapping[str, np.ndarray]

    def digest(self) -> str:
        """Digest of the readings and of what they are readings of."""
        about = json.dumps(asdict(self.about), sort_keys=True)
        digest = hashlib.blake2b(about.encode(), digest_size=16)
        for name, values in sorted(self.readings.items()):
            digest.update(f" {name} {values.dtype} {values.shape} ".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def content(self) -> bytes:
        """The bytes of the file, the same for the same readings."""
        about = {**asdict(self.about), "digest": self.digest()}
        return save(dict(self.readings), metadata={_KEY: json.dumps(about, sort_keys=True)})

    @classmethod
    def parsed(cls, content: bytes) -> TaskFile | None:
        """The file with this content; None unless it is whole."""
        try:
            header_end = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:header_end])
            about = json.loads(header["__metadata__"][_KEY])
            digest = about.pop("digest")
            file = cls(About(**about), load(content))
            is_whole = file.digest() == digest
        except Exception:  # damaged headers raise many kinds
            return None
        return file if is_whole else None


def narrowed(values: np.ndarray) -> np.ndarray:
    """Readings as bytes if these are the same numbers, such as 0 and 1; otherwise as float32."""
    values = np.ascontiguousarray(values, np.float32)
    with np.errstate(invalid="ignore"):
        narrow = values.astype(np.uint8)
    bits = values.view(np.uint32)
    is_same = np.array_equal(narrow.astype(np.float32).view(np.uint32), bits)
    return narrow if is_same else values
