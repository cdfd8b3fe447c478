"""``raygeo report`` where the store is: ``ray job submit --working-dir . -- python jobs/report.py STORE``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygeo.cli import main

if __name__ == "__main__":
    main("report")
