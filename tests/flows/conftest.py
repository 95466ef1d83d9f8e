from tests.pipelines import name, shm

__all__ = ("name", "shm")
