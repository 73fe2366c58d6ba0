"""llama.cpp's HTTP server as a command, on top of the ``xllamacpp`` wheel."""
