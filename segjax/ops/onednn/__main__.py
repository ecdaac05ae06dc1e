"""`python -m segjax.ops.onednn`: build the kernels as an installation does, and print the engine."""

import sys

from segjax.ops.onednn.build import describe

sys.stdout.write(f"convolutions on a CPU: {describe()}\n")
