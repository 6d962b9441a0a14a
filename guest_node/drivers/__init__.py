"""Drivers of a guest: Argo datagram and stream sockets over the kernel's Argo calls."""
