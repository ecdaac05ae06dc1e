"""Stand-ins for the worker processes of `segjax benchmark`."""

from segjax.benchmark import process, run

TIMES = {"forward": 4.0, "training_step": 10.0, "gradient": 9.0}


class FakeSide:
    """A stand-in for a worker process; all instances share the requests that fail."""

    asked: list = []  # noqa: RUF012, cleared by `replace`
    failing: dict = {}  # noqa: RUF012

    def __init__(self, command):
        self.torch = any("torch_peers" in word for word in command)

    def ask(self, do, **request):
        self.asked.append((self.torch, do, request))
        if do in self.failing and request.get("batch") in (None, 4):
            raise process.Failed(self.failing[do])
        programs = process.PROGRAMS
        return {
            "network": {
                "device": "abacus",
                "versions": {"jax": "1"},
                "parameters": 1747,
                "idle": None,
                "logits": {"greatest_difference": 1e-6, "mean_difference": 0.0, "greatest": 2.0},
            },
            "batch": {
                "compile_seconds": dict.fromkeys(programs, 1.5),
                "memory": {
                    "compiled": dict.fromkeys(programs, 3_000_000),
                    "device": dict.fromkeys(programs),
                    "process": dict.fromkeys(programs, 400_000_000 if self.torch else 200_000_000),
                },
                "macs": {"forward": 1000, "training_step": 2900},
                "bytes": dict.fromkeys(programs, 5000.0),
            },
            "time": {"ms": TIMES.get(request.get("program"), 0) * (3 if self.torch else 1)},
            "peaks": {"flops_per_second": 1e6, "bytes_per_second": 1e7},
        }[do]

    def end(self):
        self.asked.append((self.torch, "end", {}))


def replace(monkeypatch):
    """Let `segjax.benchmark.run` ask stand-ins; return their class."""
    monkeypatch.setattr(run, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "asked", [])
    monkeypatch.setattr(FakeSide, "failing", {})
    return FakeSide
