def inner():
    raise ValueError("bad at import")


inner()
