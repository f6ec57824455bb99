"""regstat: what container registries tell about themselves, kept in a database and answered from it."""

__version__ = "2.0.0"
