"""One repository per resource: all that is read and written of it, in its public form."""
