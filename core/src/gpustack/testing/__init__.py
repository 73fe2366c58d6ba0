"""Stand-ins for what cannot be had in a test: they ship with the program so that plugins can be tested too.

gpustack.testing.hub    the Hugging Face Hub, on loopback, with its misbehaviours
"""
