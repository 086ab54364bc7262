"""What runs inside the sandbox: the template and its workers. Standard library only."""
