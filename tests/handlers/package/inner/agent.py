"""An agent in a package: `module: package.inner.agent`."""


def handler(input_data):
    return [__name__, input_data]
