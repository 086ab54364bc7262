"""Takes without end what one agent may not take from the others: memory, processes, or the disk."""

import os
import time

import workspace

PIECE = b"x" * 16_000_000
#: A bomb goes off by itself: the machine that is measured may be somebody's.
BOMB_S = 20.0


def allocates():
    held = []
    while True:
        held.append(bytearray(PIECE))


def forks():
    end = time.monotonic() + BOMB_S
    while time.monotonic() < end:
        try:
            os.fork()
        except OSError:
            continue
    os._exit(0)


def writes():
    number = 0
    while True:
        with workspace.path(f"file-{number}").open("wb") as file:
            for _ in range(16):
                file.write(PIECE)
        number += 1


def writes_one():
    with workspace.path("file").open("wb") as file:
        while True:
            file.write(PIECE)


def handler(input_data):
    globals()[input_data["do"]]()
