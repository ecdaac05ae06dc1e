"""Build the CPU kernels and print the version of oneDNN: `python -m segjax.ops.onednn`."""

import sys

from segjax.ops.onednn.build import library

found = library()  # logs what is missing
if found:
    sys.stdout.write(f"convolutions on a CPU: oneDNN {found.version}\n")
