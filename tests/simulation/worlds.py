"""Simulated clusters that lead, for tests that want to see what comes next."""

from raft.testing.simulation.cluster import SimCluster
from raft.testing.simulation.runtime import Scheduler


def in_led_cluster(story, count=3, *, seed=1, commands=1, configure=lambda _: None):
    """Run `story(cluster, leader)` once a leader has committed so many; return its answer."""
    scheduler = Scheduler(seed)
    cluster = SimCluster(scheduler, configure)
    servers = [cluster.add() for _ in range(count)]
    cluster.bootstrap(servers)
    found = []

    def run():
        for server in servers:
            server.start()
        leader = cluster.wait_for(cluster.leader, 60, "a leader")
        for number in range(commands):
            leader.call(lambda node, n=number: node.apply(b"%d" % n).result(10), 10)
        found.append(story(cluster, leader))

    scheduler.run(run)
    cluster.invariants.check()
    return found[0]
