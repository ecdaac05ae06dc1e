"""Damage files as disks, kills, editors and other programs do."""

import json
import shutil

VALUES = (
    *(None, True, 0, -1, 1, 0.5, 1e308, 2**70, "", "x", "\ud800", "a\nb"),
    *([], {}, [[]], [1, 2, 3], {"a": 1}, [None]),
)


def damage(path, rng) -> str:
    """Damage a file at random (`random.Random`); return what was done."""
    content = path.read_bytes()
    kinds = ["flip", "cut", "garbage", "append", "insert", "empty", "delete", "folder", "deep"]
    if content[:1] == b"{":  # JSON, one object or one in each line
        kinds += ["digit"] * 6 + ["value"] * 12
    kind = rng.choice(kinds)
    place = rng.randrange(len(content) or 1)
    changed = bytearray(content or b"x")
    if kind == "flip":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        changed = changed[:place]
    elif kind == "garbage":
        changed = rng.randbytes(rng.choice((1, 10, 300)))
    elif kind == "append":
        changed += rng.choice((b"x", b"{}", b"\0\0\0\0", b"null\n", b"\xff"))
    elif kind == "insert":
        changed[place:place] = rng.choice((b"\n", b'"', b"\xff", b"NaN", b"\0", b"9" * 5000))
    elif kind == "empty":
        changed = b""
    elif kind == "deep":
        changed = b"[" * 100_000
    elif kind == "digit":
        place = rng.choice([k for k, x in enumerate(content) if chr(x).isdigit()])
        changed[place] = rng.choice([x for x in b"0123456789" if x != content[place]])
    elif kind == "value":
        *before, chosen = (
            content.splitlines(keepends=True) if path.suffix == ".jsonl" else [content]
        )
        changed = b"".join(before) + json.dumps(_change(json.loads(chosen), rng)).encode() + b"\n"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "delete":
        path.write_bytes(changed)
    return f"{path.name}: {kind} at {place}"


def repair(path, content) -> None:
    """Give a damaged file its content back."""
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(content)


def _change(content, rng):
    """Change a value anywhere inside parsed JSON: to another type, or its place away or nested."""
    owner, key = rng.choice(list(_places(content)))
    what = rng.choice(("set", "set", "set", "delete", "nest", "add"))
    if what == "set":
        owner[key] = rng.choice(VALUES)
    elif what == "delete":
        del owner[key]
    elif what == "nest":
        owner[key] = [owner[key]]
    elif isinstance(owner, dict):
        owner["added"] = rng.choice(VALUES)
    else:
        owner.append(owner[key])
    return content


def _places(content):
    """Yield (owner, key) of each value inside parsed JSON, of lists the first ones."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content[:4])
        for key, value in items:
            yield content, key
            yield from _places(value)
