"""An emulated GPU: measured truth, its board, its executor."""
