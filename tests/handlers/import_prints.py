print("while importing")
print("an open line", end="")


def handler(_input):
    return "imported"
