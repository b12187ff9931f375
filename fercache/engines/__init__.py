"""Stage one in several processes: in parts, on the devices of one machine, or on a cluster."""
