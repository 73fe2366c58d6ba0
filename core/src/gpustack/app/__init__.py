"""The composition root: from settings to running processes.

gpustack start ─▶ settings are read and checked, then the process becomes
app.supervisor    small, no framework; owns the listening sockets, and these children:
  ├─ postgres     the embedded database, unless --database-url names another
  ├─ app.child server
  ├─ app.child worker ─▶ engines, each in a session of its own
  └─ app.child door   the worker's port; keeps the sockets while there is no supervisor

With --server-url there are worker and door only. Postgres, server and worker end with their supervisor; engines and the
door do not, and the next supervisor adopts them. `gpustack restart` has the supervisor become itself anew.
"""
