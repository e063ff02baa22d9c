"""The REST API: thin doors. Each parses, calls one verb of `lifecycle`, and renders."""
