"""orpheusctl, also installed as orpheus: the operations of the daemon as commands of a shell."""
