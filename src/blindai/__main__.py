"""`python -m blindai` is the command line."""

from blindai.cli import main

main()
