"""One lab on several machines: how hosts are reached, looked at before anything starts, and what runs there.

The lab's leader, the agent that `argosy up` started, owns the broker and decides.  On every other host an agent starts,
signals and watches that host's processes and reports to the leader over the pipe by which it was started.
"""
