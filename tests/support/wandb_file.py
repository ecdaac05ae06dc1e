"""Read a .wandb file, as W&B writes a run offline."""

import json
import struct
import time


def records(path):
    """Return the protobuf records of a .wandb file.

    The format is that of LevelDB's log, after a header of seven bytes.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    position, content, found = 7, b"", []
    while position < len(data):
        block_left = 32768 - position % 32768
        if block_left < 7:
            position += block_left
            continue
        if position + 7 > len(data):  # still being written
            break
        _, length, kind = struct.unpack_from("<IHB", data, position)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(data):
            break
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(content))
            content = b""
    return found


def history(path):
    """Return the rows of a .wandb file: {"train/loss": 0.5, "val/examples": {"count": 2, ...}}.

    W&B writes in a process of its own, which may outlive the run: wait for its last record.
    """
    deadline = time.monotonic() + 60
    while not any(r.WhichOneof("record_type") == "exit" for r in records(path)):
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.2)
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {}
            for item in record.history.item:
                *above, last = item.nested_key
                place = row
                for key in above:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            rows.append(row)
    return rows
