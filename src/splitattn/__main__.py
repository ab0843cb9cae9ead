"""`python -m splitattn` is `splitattn`."""

from splitattn.cli import main

main()
