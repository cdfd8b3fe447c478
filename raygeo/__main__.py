"""``python -m raygeo`` is the command line."""

from raygeo.cli import main

main()
