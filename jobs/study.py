"""Run a study where it is submitted: ``ray job submit --working-dir . -- python jobs/study.py STUDY.yaml``.

Takes what ``raygeo run`` takes (``--set a.b=c``, ``--store URI``).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygeo.cli import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "run", *sys.argv[1:]]
    main()
