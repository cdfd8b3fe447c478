"""``raygeo doctor``: what is asked of every node of a cluster, what is wrong with the answers, and what to do."""
