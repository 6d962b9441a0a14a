"""uXen's v4v inside the hypervisor: a core without I/O, beside Argo's and over the same rings (uXen common/v4v.c)."""
