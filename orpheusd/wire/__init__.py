"""The pure wire: bytes to messages and back, with limits. It owns no socket."""
