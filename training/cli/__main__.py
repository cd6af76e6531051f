"""`python -m maya_vlm.training.cli`: the `maya` command without the installed script."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
