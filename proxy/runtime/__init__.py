"""What every asyncio program needs, knowing nothing of registries."""
