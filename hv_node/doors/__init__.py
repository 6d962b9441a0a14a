"""How a guest's instructions reach its hypervisor, as tables, and what serves them."""
