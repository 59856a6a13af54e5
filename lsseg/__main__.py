"""``python -m lsseg`` is the ``lsseg`` command."""

import sys

from lsseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
