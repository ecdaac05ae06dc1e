"""Read JSON strictly, and notice that a stored object was changed, by a checksum in it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CHECKSUM = "checksum"


def parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
      ValueError: it is not UTF-8 or not JSON, is nested too deeply, or has NaN or infinity, half a
        surrogate pair, which could not be printed, or a name twice.
    """

    def refuse(token):
        raise ValueError(f"found {token}, which is not JSON")

    def unique(pairs):
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name!r} is there twice")
            found[name] = value
        return found

    try:
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a checksum of its other fields, which `unseal` checks."""
    fields = {name: value for name, value in content.items() if name != _CHECKSUM}
    return {**fields, _CHECKSUM: _checksum(fields)}


def unseal(content: Any) -> dict[str, Any]:
    """Return an object without its checksum; one stored before there were checksums has none.

    Raises:
      ValueError: it is not an object, or not as it was sealed.
    """
    if not isinstance(content, dict):
        raise ValueError(f"found {json.dumps(content)[:60]}, expected an object")
    fields = {name: value for name, value in content.items() if name != _CHECKSUM}
    if content.get(_CHECKSUM, expected := _checksum(fields)) != expected:
        raise ValueError(
            f"it was changed after it was written; undo that, or delete its {_CHECKSUM} to accept "
            "the change"
        )
    return fields


def _checksum(fields):
    # As floats, because another program may write 1.0 as 1.
    plain = json.loads(json.dumps(fields), parse_int=float)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
