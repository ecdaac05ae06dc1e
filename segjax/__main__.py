"""`python -m segjax` is `segjax`."""

import sys

from segjax.cli.main import main

sys.exit(main())
