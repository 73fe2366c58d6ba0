"""How engines are run: as processes of their own session, which outlive the worker."""
