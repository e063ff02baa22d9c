"""One command per workload, ours beside a peer in interleaved rounds of one run."""
