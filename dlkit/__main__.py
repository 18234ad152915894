"""`python -m dlkit`, the same as the command `dlkit`."""

from dlkit.cli import main

main()
