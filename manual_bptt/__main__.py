"""`python -m manual_bptt` is the command `bptt`."""

import sys

from manual_bptt.cli import main

sys.exit(main())
