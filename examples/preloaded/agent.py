"""A heavy import, paid once: with `preload: true` the template imports it and every worker starts with it."""

import os

import knowledge


def handler(input_data):
    number = int(input_data.get("number", 1))
    return {
        "number": number,
        "smallest_factor": knowledge.smallest_factor(number),
        "loaded_by_this_process": os.getpid() == knowledge.LOADED_BY_PID,
    }
