"""The server: keeps the wanted state, answers the HTTP API, and decides where instances run."""
