"""``python -m gatework`` is ``gatework``."""

import sys

from gatework.cli import main

if __name__ == "__main__":
    sys.exit(main())
