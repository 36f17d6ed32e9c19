"""``python -m actormq``: the command line."""

import sys

from actormq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
