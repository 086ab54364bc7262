"""Everything that touches operating-system processes from the daemon's side."""
