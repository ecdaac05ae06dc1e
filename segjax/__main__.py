"""Run the command line as `python -m segjax`."""

import sys

from segjax.cli.main import main

sys.exit(main())
