"""How the runs of a sweep reach machines: one engine a module."""
