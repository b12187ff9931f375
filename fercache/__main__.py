"""``python -m fercache`` is ``fercache``."""

from fercache.cli import main

main(prog_name="fercache")
