"""`python -m tiffin.export`: export, predict and benchmark."""

from tiffin.export.cli import main

main()
