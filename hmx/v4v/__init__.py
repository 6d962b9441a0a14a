"""uXen's v4v, Argo's elder sister: its binary interface, arithmetic, and what a domain needs on its own side."""
