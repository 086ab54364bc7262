"""The ways in: the control socket and the HTTP front door."""
