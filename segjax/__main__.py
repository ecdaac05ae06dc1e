"""`python -m segjax` is `segjax`."""

import sys

from segjax.cli import main

sys.exit(main())
