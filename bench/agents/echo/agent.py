"""The least an agent can do, so that what is measured is the way to it and back."""


def handler(input_data):
    return input_data
