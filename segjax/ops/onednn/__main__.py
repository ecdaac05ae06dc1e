"""`python -m segjax.ops.onednn`: build the kernels, as an installation does, and print it."""

import sys

from segjax.ops.onednn.build import library

found = library()  # logs what is missing
if found:
    sys.stdout.write(f"convolutions on a CPU: oneDNN {found.version}\n")
