"""Labs over several machines: network namespaces joined by veth pairs, a real sshd in each."""
