"""Argo inside the hypervisor: a core without I/O that answers argo_op as Xen does (Xen common/argo.c)."""
