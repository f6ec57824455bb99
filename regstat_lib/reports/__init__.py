"""Questions about a registry, answered from the views of the database; nothing here writes or asks a registry."""
