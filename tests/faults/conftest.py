from jobs.conftest import place

__all__ = ["place"]
