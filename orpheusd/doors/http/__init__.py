"""The HTTP front door: a process of its own that turns HTTP into calls of the control protocol, and nothing more."""
