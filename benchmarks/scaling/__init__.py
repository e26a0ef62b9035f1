"""How many replicas, adapters and routers a fleet needs: a simulation fed with measured service times."""
