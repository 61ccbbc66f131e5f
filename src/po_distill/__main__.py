"""`python -m po_distill` is `po-distill`."""

from po_distill.cli import main

main()
