"""A test-only app: shows that the guard serves any state machine, here the workflow one."""
