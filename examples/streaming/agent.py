"""An answer in pieces: what an async generator yields reaches the caller while the run goes on."""

import asyncio


async def handler(input_data):
    for word in input_data.get("query", "").split():
        await asyncio.sleep(input_data.get("pause_s", 0.05))  # a model that takes its time over each token
        yield {"token": word}
