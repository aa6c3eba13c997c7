from __future__ import annotations

import asyncio


class Admissions:
    def __init__(self, *a):
        pass

    async def accept(self, c):
        c.close(0, "x")

    async def serve(self):
        await asyncio.Event().wait()
