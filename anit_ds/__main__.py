"""`python -m anit_ds`: the command `anit` where its script is not on the PATH."""

from anit_ds.commands.cli import main

main()
