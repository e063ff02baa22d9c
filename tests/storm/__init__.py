"""A storm of events: moves from many processes while Redis and relays are stopped and killed.

python -m tests.storm --moves 20000 --processes 8 --on postgres

Some transactions commit long after they began. One reader of the Redis Stream and one listener in
this process go away and come back again and again, each with the last sequence that it saw. At the
end both must have seen every row of the history at least once, and of each entity every version
for the first time in order.
"""
