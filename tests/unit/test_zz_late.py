import pytest, time, asyncio, uvloop
@pytest.mark.deadline(0.5)
def test_uv():
    async def f(): await asyncio.sleep(500)
    uvloop.run(f())
