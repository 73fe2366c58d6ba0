"""The composition root: from settings to running processes.

gpustack start ─▶ settings are read and checked, then the process becomes
app.supervisor    small, no framework; owns the listening sockets, and these children:
  ├─ postgres     the embedded database, unless --database-url names another
  ├─ app.child server
  └─ app.child worker ─▶ engines, each in a session of its own
"""
