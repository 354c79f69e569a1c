"""`python -m vmcarve` is the command `vmcarve`."""

import sys

from .cli import main

sys.exit(main())
