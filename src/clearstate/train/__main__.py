"""`python -m clearstate.train RECIPE [key=value ...]`."""

import sys

from clearstate.train.command import main

if __name__ == "__main__":
    sys.exit(main())
