from tests.pipelines import geometry, name, pipeline, shm

__all__ = ("geometry", "name", "pipeline", "shm")
