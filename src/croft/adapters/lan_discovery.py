"""placeholder"""


class LanDiscovery:
    async def publish(self, *a):
        pass

    async def withdraw(self, *a):
        pass

    async def find(self, *a):
        return []

    async def close(self):
        pass
