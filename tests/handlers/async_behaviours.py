"""An async agent that does what its input says, and async generators."""

import asyncio
import contextvars
import os
import sys
import threading

import workspace

loops = []
lock_holder = {"now": 0, "most": 0}
background = set()
value = contextvars.ContextVar("value", default="unset")


async def handler(input_data):
    if not isinstance(input_data, dict) or "do" not in input_data:
        return input_data
    return await globals()[input_data["do"]](input_data)


async def facts(_input):
    loop = asyncio.get_running_loop()
    loops.append(loop)
    return {"same_loop": all(one is loop for one in loops), "runs": len(loops), "pid": os.getpid(),
            "id": workspace.run.id, "session": workspace.run.session, "tasks": len(asyncio.all_tasks())}


async def sleeps(input_data):
    try:
        await asyncio.sleep(input_data["seconds"])
    finally:
        workspace.path("cleaned").write_text(workspace.run.id)
    if "then_prints" in input_data:
        print(input_data["then_prints"])
    return "slept"


async def meets(input_data):
    """Prints around a pause, so that runs overlap."""
    name = input_data["name"]
    lock_holder["now"] += 1
    lock_holder["most"] = max(lock_holder["most"], lock_holder["now"])
    value.set(name)
    for number in range(input_data.get("lines", 3)):
        print(f"{name} {number}")
        workspace.emit(f"{name} {number}")
        await asyncio.sleep(0.005)
    lock_holder["now"] -= 1
    return {"most": lock_holder["most"], "value": value.get(), "run": workspace.run.id}


async def prints_in_thread(_input):
    await asyncio.to_thread(print, "from a thread")
    await asyncio.get_running_loop().run_in_executor(None, print, "without context")


async def locked(input_data):
    async with workspace.lock("async", timeout_s=input_data.get("timeout_s")):
        lock_holder["now"] += 1
        lock_holder["most"] = max(lock_holder["most"], lock_holder["now"])
        await asyncio.sleep(0.01)
        lock_holder["now"] -= 1
    return lock_holder["most"]


async def swallows(_input):
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        return "swallowed"


async def blocks(input_data):
    threading.Event().wait(input_data["seconds"])
    return "blocked"


async def raises(_input):
    raise ValueError("async and wrong")


async def exits(_input):
    sys.exit(4)


async def cancels_itself(_input):
    raise asyncio.CancelledError


async def leaves_task(_input):
    async def late():
        await asyncio.sleep(0.03)
        print("after its run")
        workspace.emit("after its run")

    task = asyncio.ensure_future(late())
    background.add(task)


async def leaves_exit(_input):
    async def late():
        await asyncio.sleep(0.01)
        raise SystemExit(9)

    background.add(asyncio.ensure_future(late()))


async def prints_much(input_data):
    print("x" * input_data["bytes"])


async def forks_and_returns(_input):
    pid = os.fork()
    if pid == 0:
        return "from the child"
    os.waitpid(pid, 0)
    return "from the parent"


async def closes_all(_input):
    os.closerange(3, 1024)
    return "closed"


async def unfit(_input):
    return {1, object()}


async def pieces(input_data):
    for number in range(input_data.get("pieces", 0)):
        if input_data.get("pause_s"):
            await asyncio.sleep(input_data["pause_s"])
        print(f"line {number}")
        yield {"piece": number}


async def endless(input_data):
    """Never waits by itself."""
    try:
        while True:
            yield "x" * input_data.get("size", 1)
    finally:
        workspace.path("told").write_text("closed")
