"""Infrastructure of any asyncio program, independent of registries."""
