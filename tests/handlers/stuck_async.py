"""Async handlers that do not come back, each for a reason of its own. `do` says which."""

import asyncio
import os
import sys


def begun():
    """Tell that the caller, whose name will be in the stack, is being executed."""
    print(f"in {sys._getframe(1).f_code.co_name}")


async def handler(input_data):
    return await globals()[input_data["do"]](input_data)


async def echoes(_input):
    return os.getpid()


async def awaits(_input):
    begun()
    await asyncio.sleep(3600)


async def spins(_input):
    begun()
    while True:
        pass


async def catches_everything(_input):
    begun()
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
